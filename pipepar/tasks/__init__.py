"""What each task reads, needs from the model, and answers."""
