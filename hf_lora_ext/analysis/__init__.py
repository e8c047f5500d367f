"""What a trained adapter holds, and how much of it is needed."""
