"""Data: tokenizers, sources, transforms, pipelines, datasets to build."""
