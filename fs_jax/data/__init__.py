"""From files to batches.

tokenizer   words to tokens; unknown words are named
transforms  decoding, resizing, augmenting
contents    what the files of a split hold, as one number
prepare     datasets built once, by one process
records     TFDS datasets as ArrayRecord, without TensorFlow
sources     a split: ids, captions, pictures
order       which examples a step shows
pipeline    batches of the rows that a process holds
datasets    TFDS builders, a folder each
"""
