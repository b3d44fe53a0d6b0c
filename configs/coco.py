"""COCO captions with a B/16, on eight chips of a TPU v5e.

    python -m launch.plan --config=configs/coco.py:fast
    python -m launch.train --config=configs/coco.py:fast --workdir=gs://my/coco

then slow and distill. On another machine only the mesh changes:
--config.mesh.fsdp=2.
"""

import dataclasses
from typing import Any

from fs_jax import config, configdict, sizes


def with_remat(tower: Any) -> Any:
  """Recomputes activations in the backward pass.

  With stored activations, 64 pictures do not fit a v5e.
  """
  stack = dataclasses.replace(tower.stack, remat="full")
  return dataclasses.replace(tower, stack=stack)


VISION = with_remat(sizes.VISION["B/16"])
DATA = config.Data("coco", image_size=224, augment="crop", threads=16)
COMMON: dict[str, Any] = {
  "compute": "bfloat16",
  "data": DATA,
  "tokens": config.Tokens("wordpiece", vocabulary=16_384, length=32),
  "fast": config.Fast(VISION, with_remat(sizes.TEXT["B"])),
  "optim": config.Optim(learning_rate=5e-4, warmup=500, b2=0.95, ema=0.999),
  "mesh": config.Mesh(topology="v5e:2x4"),
}
SLOW = config.Slow(
  VISION,
  decoder=dataclasses.replace(sizes.DECODER["B"], layers=6, remat="full"),
  text_layers=2,
  levels=2,
  widths=(384,),
)


def get_config(stage: str = "fast") -> configdict.ConfigDict:
  """stage: fast, slow or distill."""
  stages = {"fast": fast, "slow": slow, "distill": distill}
  return configdict.edit(stages[stage]())


def fast() -> config.Config:
  return config.Config(
    "fast", **COMMON, train=config.Train(steps=10_000, batch_size=512)
  )


def slow() -> config.Config:
  data = dataclasses.replace(DATA, captions_per_visual=2)
  return config.Config(
    "slow",
    slow=SLOW,
    **(COMMON | {"data": data}),
    init=config.Init("fast", (("fast/vision/", "slow/encoder/vision/"),)),
    train=config.Train(steps=10_000, batch_size=256),
  )


def distill() -> config.Config:
  return config.Config(
    "distill",
    slow=SLOW,
    **COMMON,
    distill=config.Distill(clusters=8, cluster_size=16, lists=8192),
    init=config.Init("fast", teacher="slow"),
    train=config.Train(steps=5000, batch_size=256),
  )
