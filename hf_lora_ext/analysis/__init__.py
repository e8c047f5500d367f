"""A trained adapter: what its directions carry, what it loses at every smaller size, and a smaller one."""
