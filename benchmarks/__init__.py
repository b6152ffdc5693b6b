"""Measurements: see README.md for the questions and the figures."""
