"""Scenes of emoji: what `make quickstart` runs, minutes on two cores.

    python -m launch.train --config=configs/scenes.py:fast --workdir=runs/x
    python -m launch.train --config=configs/scenes.py:slow --workdir=runs/x
    python -m launch.train --config=configs/scenes.py:distill --workdir=runs/x

`fast_longer` is the control: the same extra time on the contrastive loss alone.
"""

from fs_jax import config as schema


def get_config(stage: str = "fast"):
  """stage: fast, fast_longer, slow or distill."""
  from fs_jax import configdict

  vision = schema.Vision(schema.Stack(96, 4, 4, 192), patch=32)
  text = schema.Text(schema.Stack(96, 2, 4, 192))
  slow = schema.Slow(
    vision,
    decoder=schema.Stack(96, 3, 4, 192),
    text_layers=1,
    levels=3,
    widths=(64, 48),
    d_mem=48,
  )
  common = {
    "data": schema.Data(cache="ram"),
    "tokens": schema.Tokens("phrase", phrases=32, length=14),
    "fast": schema.Fast(vision, text, embed=96),
  }
  stages = {
    "fast": schema.Config(
      "fast",
      **common,
      optim=schema.Optim(learning_rate=2e-3),
      train=schema.Train(steps=600, batch_size=256, eval_every=100),
    ),
  }
  return configdict.edit(stages[stage])
