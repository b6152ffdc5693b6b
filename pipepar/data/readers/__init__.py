"""Files -> samples, one file for each format."""
