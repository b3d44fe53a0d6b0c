"""VATEX: videos of eight frames with a B/16, on sixteen chips of a TPU v5e.

    python -m launch.plan --config=configs/vatex.py:fast
    python -m launch.train --config=configs/vatex.py:fast --workdir=W

Slow's finer level keeps every fourth frame.
"""

import dataclasses

from configs import coco
from fs_jax import config, configdict


def get_config(stage: str = "fast") -> configdict.ConfigDict:
  """stage: fast, slow or distill."""
  stages = {"fast": coco.fast, "slow": coco.slow, "distill": coco.distill}
  return configdict.edit(_for_videos(stages[stage]()))


def _for_videos(cfg: config.Config) -> config.Config:
  batch = {"fast": 256, "slow": 64, "distill": 128}[cfg.stage]
  slow = cfg.slow
  if slow is not None:
    slow = dataclasses.replace(slow, finer_frames=4)
  return dataclasses.replace(
    cfg,
    data=dataclasses.replace(cfg.data, dataset="vatex", frames=8),
    slow=slow,
    distill=dataclasses.replace(
      cfg.distill, clusters=4, teacher="offline", lists=2048
    ),
    mesh=config.Mesh(topology="v5e:4x4"),
    train=dataclasses.replace(cfg.train, steps=5000, batch_size=batch),
  )
