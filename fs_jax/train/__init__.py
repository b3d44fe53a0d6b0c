"""What is minimised, and how.

Its files, lower ones first:

    losses       contrastive, captioning, matching, distillation
    tiles        every row with every column, around a ring of devices
    ring         contrastive losses that never form B x B
    tasks        objectives: a loss over the models of a stage
    gradients    gradients over microbatches, exact for any loss
    optim        optimisers, schedules, running means
    step         one step, jitted, with its shapes and places
    pair_scores  scores of a sample, in memory that training has
    loop         data, step, log, validate, save, stop
    clusters     what the teacher judges: mined, and judged offline
    lineage      whether earlier stages fit the one that begins
    train        a stage from its config
    plan         whether a stage fits a machine, and how long it takes
"""
