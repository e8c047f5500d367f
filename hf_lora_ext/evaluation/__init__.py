"""What an adapter changes on held-out examples, with intervals."""
