"""A run as a recipe, and what carries it out."""
