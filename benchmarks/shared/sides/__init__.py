"""Ways to stream the same load from rank 0 to rank 1."""
