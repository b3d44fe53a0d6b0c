"""What is stored of a gallery: vectors, memories, index.

buckets   queries padded to a few batch sizes
corpus    vectors and ids: written, validated, read
exact     nearest neighbours by all dot products, and the type Index
tuner     the cheapest settings of a tree that reach a recall
scann     ScaNN, the one module that knows it
index     an index of either kind: built, measured, loaded
memories  the token store: what Slow reads of each visual
items     what a person is shown: path, captions, a small picture
encode    a gallery encoded: vectors, memories, items
"""
