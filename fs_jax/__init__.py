"""Text-to-visual search that thinks fast and slow."""

__version__ = "0.1.0"
