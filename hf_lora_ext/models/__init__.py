"""What a base model is: its shape, its size, what of it can be adapted, and where its weights are."""
