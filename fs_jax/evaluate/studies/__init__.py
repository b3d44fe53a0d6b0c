"""Whole comparisons of a workdir.

checklist  steps of a study, each done once
gallery    what a study makes of a gallery
answers    all rankers over all queries, kept
study      a workdir trained, evaluated, reported
evidence   many workdirs compared, the claims behind the README
"""
