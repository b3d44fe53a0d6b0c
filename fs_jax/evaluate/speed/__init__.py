"""How fast the parts run, beside others.

timing              indices, losses and products, before and after
serving             the latency of queries, warmed up and not
baseline            a process of another framework that is timed
baseline_open_clip  open_clip on PyTorch as such a process
train_step          a train step beside the baseline
"""
