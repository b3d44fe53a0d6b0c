"""Recipes: each file has a `get_config()`; fields are in fs_jax/config.py."""
