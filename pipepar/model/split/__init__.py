"""Cuts of a graph, their costs, and the module of each stage."""
