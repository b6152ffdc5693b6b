"""The tasks: their inputs, models and outputs."""
