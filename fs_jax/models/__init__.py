"""Flax, pure: from pixels and tokens to vectors, memories and scores.

layers  attention, blocks and stacks
text    token embedding, and the text tower of Fast
vision  pixels, patches and the ViT
fast    the dual encoder
slow    the captioner over gradually upsampled memories
build   models and first parameters from a config
flops   products of a step and of a pair, counted
"""
