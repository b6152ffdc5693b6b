"""A checkpoint -> the tensors of one stage."""
