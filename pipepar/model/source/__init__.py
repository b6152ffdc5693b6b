"""Turns the MODEL argument into a module on meta and the source of its weights."""
