"""Whole comparisons of a workdir: what is answered, and what is reported."""
