"""Capture of a module as one graph with dynamic sizes."""
