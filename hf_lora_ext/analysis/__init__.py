"""A trained adapter looked at: what its directions carry, and what that says about its ranks."""
