"""Examples to train on, checked, split and fingerprinted."""
