"""Reports at the end of a run."""
