"""Reads the tensors of one stage from a checkpoint."""
