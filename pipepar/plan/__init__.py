"""From costs to a plan; imports neither torch nor MPI."""
