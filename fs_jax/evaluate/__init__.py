"""How well, how fast, and shown."""
