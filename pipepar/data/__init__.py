"""Readers of inputs and writers of outputs; independent of models and ranks."""
