"""A trained stage on disk.

layout      where everything of a workdir lies
contract    what a stage, a gallery and a split are made of
checksums   digests of arrays, computed where they lie
uploads     metrics to object stores, off the loop
journal     metrics.jsonl, TensorBoard and the progress line
checkpoint  states saved and restored, the best ones kept
card        a model card, as Markdown
stages      a stage: its folder begun, finished, loaded
"""
