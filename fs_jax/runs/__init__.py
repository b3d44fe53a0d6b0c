"""A trained stage on disk."""
