"""Flickr30K: the stages of configs/coco.py with a quarter of the steps.

python -m launch.plan --config=configs/flickr30k.py:fast
python -m launch.train --config=configs/flickr30k.py:fast --workdir=W
"""

import dataclasses

from configs import coco
from fs_jax import config, configdict


def get_config(stage: str = "fast") -> configdict.ConfigDict:
  """stage: fast, slow or distill."""
  stages = {"fast": coco.fast, "slow": coco.slow, "distill": coco.distill}
  return configdict.edit(_smaller(stages[stage]()))


def _smaller(cfg: config.Config) -> config.Config:
  steps = cfg.train.steps // 4
  return dataclasses.replace(
    cfg,
    data=dataclasses.replace(cfg.data, dataset="flickr30k"),
    distill=dataclasses.replace(cfg.distill, teacher="offline", lists=2048),
    train=dataclasses.replace(cfg.train, steps=steps),
  )
