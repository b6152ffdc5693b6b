"""What a run reports at its end."""
