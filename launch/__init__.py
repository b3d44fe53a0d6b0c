"""Programs: each turns argv into one call of fs_jax."""
