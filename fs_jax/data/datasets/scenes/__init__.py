"""Scenes: arrangements of a few emoji, and captions that are exact."""
