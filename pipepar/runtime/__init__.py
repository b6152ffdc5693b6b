"""Where the rooms meet: stages, the loop, and everything around a run."""
