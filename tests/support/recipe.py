"""A config of every stage that trains in seconds: programs are tested on it.

python -m launch.train --config=tests/support/recipe.py:fast --workdir=W \
    --config.data.dir=D
"""

import dataclasses

from configs import scenes
from fs_jax import config, configdict

STACK = config.Stack(16, 1, 2, 32)
VISION = config.Vision(STACK, patch=32)
SIZES = (
  ("train", 256),
  ("uncaptioned", 64),
  ("validation_groups", 4),
  ("test_groups", 4),
)


def get_config(stage: str = "fast") -> configdict.ConfigDict:
  """Stages as in configs/scenes.py, of width 16, for a few steps."""
  cfg = configdict.parse(scenes.get_config(stage))
  slow = config.Slow(VISION, decoder=STACK, d_mem=8)
  return configdict.edit(
    dataclasses.replace(
      cfg,
      fast=config.Fast(VISION, config.Text(STACK), embed=16),
      slow=cfg.slow and slow,
      data=dataclasses.replace(
        cfg.data, sizes=SIZES, image_size=32, augment="none"
      ),
      # Slow learns so much that its scores say something: a fit needs that.
      optim=config.Optim("muon", learning_rate=2e-2, warmup=1),
      distill=dataclasses.replace(
        cfg.distill, clusters=2, cluster_size=4, lists=8
      ),
      train=config.Train(
        steps=16 if stage == "slow" else 4,
        batch_size=16,
        log_every=2,
        save_every=8 if stage == "slow" else 2,
      ),
    )
  )
