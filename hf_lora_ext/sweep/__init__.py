"""A sweep: one recipe tried at many points of a space, and what that tells."""
