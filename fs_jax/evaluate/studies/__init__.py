"""Complete comparisons of a workdir.

Its files, lower ones first:

    checklist  steps of a study, each done once
    query_set  the queries of a study, the same for every ranker
    galleries  a split, encoded and indexed for a study
    answers    all rankers' answers to all queries, stored
    study      a workdir trained, evaluated, reported
    evidence   several workdirs compared: the README's claims
"""
