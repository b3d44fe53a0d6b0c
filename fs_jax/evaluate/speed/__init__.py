"""How fast the components run, beside others.

Its files, lower ones first:

    timing              indices, losses and matrix products
    serving             the latency of queries, warmed up and not
    baseline            a process of another framework, to be timed
    baseline_open_clip  open_clip on PyTorch as such a process
    pieces              a train step and its pieces, as calls to time
    train_step          a train step timed beside the baseline
"""
