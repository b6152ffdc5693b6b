"""What the Python API adds to the engine: a model from a script, calls, whole batches."""
