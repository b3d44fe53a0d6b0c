"""A trained stage on disk.

Its files, lower ones first:

    layout      the names of files and folders in a workdir
    contract    what a stage, a gallery and a split are made from
    checksums   checksums of arrays, computed on their devices
    uploads     metrics to object stores, in a thread
    journal     metrics.jsonl, TensorBoard and the progress line
    checkpoint  saves and restores states, keeps the best
    card        a model card, as Markdown
    stages      a stage's folder: begins, finishes, loads it
"""
