"""The formats of outputs, one file each, found by `pipepar.data.writers.registry`."""
