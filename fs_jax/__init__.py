"""Search images and videos with plain-language queries, thinking fast and slow.

The ground, then the rooms, lower ones first:

    types       the nouns: Batch, Memory, Candidates, Corpus, Task
    config      the schema of a config, its defaults and its rules
    sizes       models by the usual names of their sizes
    configdict  a config as ml_collections edits it, and as JSON
    trees       names of parameters, and tables of patterns over them
    machine     disks, devices, processes and pods
    models      Flax: from pixels and tokens to vectors, memories and scores
    data        from files to batches
    runs        a trained stage on disk
    gallery     what is stored of a gallery: vectors, memories, index
    search      from a question to an answer
    train       what is minimised, and how
    evaluate    how well, how fast, and shown
"""

__version__ = "0.1.0"
