"""Flax, pure: from pixels and tokens to vectors, memories and scores.

Its files, lower ones first:

    layers     products, norms and token tables
    attention  over a sequence, and over what is stored of a visual
    blocks     transformer blocks, stacks and pooling
    text       token embedding, and the text tower of Fast
    vision     pixels, patches and the ViT
    fast       the dual encoder
    slow       the captioner over gradually upsampled memories
    build      models and first parameters from a config
    flops      products of a step and of a pair, counted
"""
