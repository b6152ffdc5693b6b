"""A module -> one graph; free sizes; refusals that name the line of the user's code."""
