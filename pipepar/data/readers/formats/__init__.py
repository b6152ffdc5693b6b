"""The formats of inputs, one file each, found by `pipepar.data.readers.registry`."""
