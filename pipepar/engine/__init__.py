"""Execution of a plan: stages, loop, wiring and loading."""
