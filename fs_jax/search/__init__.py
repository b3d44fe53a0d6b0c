"""From a question to an answer.

fusion     how Slow and Fast combine: the formula, its weights on disk
fitting    those weights, fitted on validation
scorer     Slow as a judge of pairs, compiled for any question
rerank     Fast's candidates in the order of both
rankers    exact, ScaNN, re-ranked, Slow alone: one protocol
weigh      the weights of two stages, fitted where they are missing
grounding  where Slow looks at each word
remake     the command that makes a gallery anew
packed     a gallery that travels
searcher   the front door: a folder opened, a question answered
"""
