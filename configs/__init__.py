"""Recipes: one `get_config(stage)` per file; fields are in fs_jax/config.py."""
