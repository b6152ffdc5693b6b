"""From costs to a plan: numbers only, no torch, no ranks."""
