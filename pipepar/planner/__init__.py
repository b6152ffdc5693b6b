"""A graph and a group of ranks -> an agreed plan."""
