"""What can be chosen for a run: method, rank, targets, learning rate; what the user fixed, and what is advised."""
