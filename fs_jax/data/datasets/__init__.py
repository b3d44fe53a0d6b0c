"""Datasets that build themselves from pip packages, one folder each."""
