"""A folder of pictures with captions: small models, minutes on a CPU.

    python -m launch.train --config=configs/folder.py:fast --workdir=runs/mine \
        --config.data.dir=/path/to/folder

The folder holds train.jsonl and dev.jsonl, with a line {"image": name,
"captions": [...]} per picture, and the pictures in images/.
"""

from typing import Any

from fs_jax import config, configdict

VISION = config.Vision(
  config.Stack(128, 4, 4, 256, dropout=0.1), patch=32, stem=64
)
TEXT = config.Text(config.Stack(128, 2, 4, 256, dropout=0.1))
COMMON: dict[str, Any] = {
  "data": config.Data(
    "folder",
    dir="data/folder",
    validation="dev",
    image_size=96,
    resize="crop",
    augment="crop",
    cache="ram",
  ),
  "tokens": config.Tokens("wordpiece", vocabulary=1000, length=24),
  "fast": config.Fast(VISION, TEXT, embed=128),
  "optim": config.Optim("muon", learning_rate=2e-3, warmup=50),
}
SLOW = config.Slow(
  VISION,
  decoder=config.Stack(128, 3, 4, 256, dropout=0.1),
  levels=2,
  widths=(64,),
  stem=64,
  d_mem=64,
)


def get_config(stage: str = "fast") -> configdict.ConfigDict:
  """stage: fast, slow or distill."""
  stages = {"fast": fast, "slow": slow, "distill": distill}
  return configdict.edit(stages[stage]())


def fast() -> config.Config:
  return config.Config(
    "fast", **COMMON, train=config.Train(steps=400, eval_every=100)
  )


def slow() -> config.Config:
  return config.Config(
    "slow",
    slow=SLOW,
    **COMMON,
    init=config.Init("fast", (("fast/vision/", "slow/encoder/vision/"),)),
    train=config.Train(steps=300, batch_size=64, eval_every=100),
  )


def distill() -> config.Config:
  return config.Config(
    "distill",
    slow=SLOW,
    **COMMON,
    distill=config.Distill(
      clusters=4, cluster_size=16, lists=512, teacher="offline"
    ),
    init=config.Init("fast", teacher="slow"),
    train=config.Train(steps=300, batch_size=128, eval_every=100),
  )
