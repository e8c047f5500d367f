"""Adaptive rank: directions of LoRA updates seen, valued, allocated under a budget, and moved."""
