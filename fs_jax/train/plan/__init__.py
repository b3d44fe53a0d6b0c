"""Whether a stage fits a machine, and how long it would take there.

hlo     what a compiled program sends and reads
plan    a step compiled for a TPU that need not be there
advice  what would make it fit
table   plans in words, and all of them in a table
"""
