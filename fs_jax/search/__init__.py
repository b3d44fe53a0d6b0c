"""From a query to an answer.

Its files, lower ones first:

    fusion     how Slow and Fast combine: the formula, its weights on disk
    fitting    fits those weights on scored queries
    scorer     Slow as a judge of pairs, compiled for any number of queries
    rerank     orders Fast's candidates by both scores
    rankers    exact, ScaNN, re-ranked, Slow alone: one protocol
    weigh      fits the weights of two stages where they are missing
    grounding  where Slow looks as it predicts each word
    packed     a gallery that travels: writes and reads it
    loading    loads a gallery's parts and checks that they fit together
    searcher   the front door: opens a folder, answers queries
"""
