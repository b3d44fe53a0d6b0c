"""Flax models: pure functions of parameters; no disk, mesh, clock or flags."""
