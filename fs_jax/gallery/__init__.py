"""What is stored of a gallery: vectors, memories, items, index.

Its files, lower ones first:

    buckets   queries padded to a few batch sizes
    corpus    writes, validates and reads vectors and ids
    exact     nearest neighbours by all dot products; the type Index
    tuner     the cheapest settings of a tree that reach a recall
    scann     ScaNN; no other module knows it
    index     builds, measures and loads an index of either kind
    memories  writes and reads what Slow stores of each visual
    items     what people see of each visual: path, captions, thumbnail
    encode    encodes a gallery: vectors, memories, items
"""
