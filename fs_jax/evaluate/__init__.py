"""How well, how fast, and shown.

metrics     ranks, recalls, intervals
results     rankers judged by metrics, as a report
validation  a quick recall while a stage trains
speed       how fast: here, and beside others
page        results as a page to look at
studies     whole comparisons of a workdir
"""
