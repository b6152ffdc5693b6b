"""Use cases from file to file."""
