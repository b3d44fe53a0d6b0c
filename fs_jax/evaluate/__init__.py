"""Quality, speed, and pages that show them.

Its files, lower ones first:

    metrics     ranks and recalls
    intervals   bootstrap intervals of a mean
    reports     report.json: its rows, written and printed
    results     rankers measured by metrics
    validation  a quick recall while a stage trains
    speed       how fast the components run, beside others
    page        results as a page to look at
    studies     complete comparisons of a workdir
"""
