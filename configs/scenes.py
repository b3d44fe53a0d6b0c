"""Scenes of emoji: the recipe of `make quickstart`, minutes on two cores.

    python -m launch.train --config=configs/scenes.py:fast --workdir=runs/x
    python -m launch.train --config=configs/scenes.py:slow --workdir=runs/x
    python -m launch.train --config=configs/scenes.py:distill --workdir=runs/x

`fast_longer` is a control: Fast, trained longer.
"""

from typing import Any

from fs_jax import config, configdict

VISION = config.Vision(config.Stack(96, 4, 4, 192), patch=32, stem=64)
COMMON: dict[str, Any] = {
  "data": config.Data(cache="ram", augment="shift"),
  "tokens": config.Tokens("phrase", phrases=32, length=14),
  "fast": config.Fast(
    VISION, config.Text(config.Stack(96, 2, 4, 192)), embed=96
  ),
  "optim": config.Optim("muon", learning_rate=3e-3, warmup=50),
}
SLOW = config.Slow(
  VISION,
  decoder=config.Stack(96, 2, 4, 192),
  levels=2,
  widths=(64,),
  stem=64,
  d_mem=48,
)


def get_config(stage: str = "fast") -> configdict.ConfigDict:
  """stage: fast, fast_longer, slow or distill."""
  stages = {"fast": fast, "fast_longer": fast_longer, "slow": slow}
  return configdict.edit((stages | {"distill": distill})[stage]())


def fast() -> config.Config:
  return config.Config(
    "fast",
    **COMMON,
    train=config.Train(steps=400, save_every=100, eval_every=100),
  )


def fast_longer() -> config.Config:
  """The control: trains on pairs for the time of distillation and its teacher.

  `make evidence` sets the steps by the clock.
  """
  return config.Config(
    "fast",
    name="fast_longer",
    **COMMON,
    init=config.Init("fast"),
    train=config.Train(steps=1750, save_every=200, eval_every=100),
  )


def slow() -> config.Config:
  changed = {
    "data": config.Data(cache="ram", augment="shift", captions_per_visual=4),
    "optim": config.Optim("muon", learning_rate=6e-3, warmup=30),
  }
  return config.Config(
    "slow",
    slow=SLOW,
    **(COMMON | changed),
    init=config.Init("fast", (("fast/vision/", "slow/encoder/vision/"),)),
    train=config.Train(steps=220, batch_size=64, save_every=55, eval_every=110),
  )


def distill() -> config.Config:
  data = config.Data(cache="ram", augment="shift", uncaptioned="uncaptioned")
  return config.Config(
    "distill",
    slow=SLOW,
    **(COMMON | {"data": data}),
    distill=config.Distill(
      clusters=8, cluster_size=16, lists=1200, teacher="offline"
    ),
    init=config.Init("fast", teacher="slow"),
    train=config.Train(
      steps=1100, batch_size=64, save_every=200, eval_every=100
    ),
  )
