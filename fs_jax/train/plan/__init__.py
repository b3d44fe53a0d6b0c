"""Whether a stage fits a machine, and how long it would take there.

Its files, lower ones first:

    hlo     what a compiled program sends and reads
    plan    a step compiled for a TPU that need not be there
    render  a plan in lines, and as a row of a table
    advice  what would make it fit
    table   plans of many stages: made, kept and shown
"""
