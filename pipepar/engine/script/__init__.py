"""The parts of the engine that only the Python API uses: a script's model, calls and batches."""
