"""From files to batches.

Its files, lower ones first:

    vocabulary  words, phrases, wordpieces or BPE, learned from captions
    tokenizer   strings to token ids; names unknown words
    transforms  decoding, resizing, augmenting
    contents    a digest of a split's files
    prepare     builds a dataset once, in one process
    records     splits on disk: TFDS datasets without TensorFlow, or a folder
    sources     a split: ids, captions, pictures
    order       what step t shows, as a function of the seed and t
    captions    the captions of a source, tokenised once
    pipeline    batches of the rows that a process holds
    datasets    TFDS builders, a folder each
"""
