"""Jobs from an input file to an output file, and the planning of such jobs."""
