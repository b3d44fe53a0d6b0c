"""Emoji: single drawings by different artists, with their names."""
