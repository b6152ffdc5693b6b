"""Executes a plan: stages, the loop, wiring, loading."""
