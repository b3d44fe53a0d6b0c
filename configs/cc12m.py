"""CC12M: pre-training at batch 32,768 on a pod slice, B/16 or L/14.

    python -m launch.plan --config=configs/cc12m.py:fast
    python -m launch.plan --config=configs/cc12m.py:fast_l14@v5p:4x4x4
    python -m launch.train --config=configs/cc12m.py:fast --workdir=gs://my/cc

A stage may name another topology after an @: fast@2*v5e:16x16 is two slices.
"""

import dataclasses
from typing import Any

from configs import coco
from fs_jax import config, configdict, sizes

# Stages that `launch.plan --all` also plans for other topologies.
ELSEWHERE = tuple(
  f"{stage}@{topology}"
  for stage in ("fast", "fast_l14")
  for topology in ("v6e:16x16", "v5p:4x4x4", "2*v5e:16x16")
)
COMMON: dict[str, Any] = {
  "compute": "bfloat16",
  "data": config.Data("cc12m", image_size=224, augment="crop", threads=32),
  "tokens": config.Tokens("bpe", vocabulary=32_000, length=48),
  "optim": config.Optim(learning_rate=1e-3, warmup=2000, b2=0.95, ema=0.9999),
}


def get_config(stage: str = "fast") -> configdict.ConfigDict:
  """stage: fast, fast_l14, slow or distill."""
  stage, _, machine = stage.partition("@")
  stages = {"fast": fast, "fast_l14": fast_l14, "slow": slow}
  cfg = (stages | {"distill": distill})[stage]()
  slices, _, topology = machine.rpartition("*")
  mesh = dataclasses.replace(
    cfg.mesh,
    slices=int(slices or 1),
    topology=topology or cfg.mesh.topology,
  )
  return configdict.edit(dataclasses.replace(cfg, mesh=mesh))


def fast(size: str = "B/16", name: str = "", fsdp: int = 1) -> config.Config:
  vision = coco.with_remat(sizes.VISION[size])
  text = coco.with_remat(sizes.TEXT["B"])
  return config.Config(
    "fast",
    config.Fast(vision, text, chunk=512),
    name=name,
    **COMMON,
    mesh=config.Mesh(fsdp=fsdp, topology="v5e:16x16"),
    train=config.Train(steps=12_000, batch_size=32_768),
  )


def fast_l14() -> config.Config:
  return fast("L/14", "fast_l14", fsdp=8)


def slow() -> config.Config:
  cfg = fast()
  return dataclasses.replace(
    cfg,
    stage="slow",
    slow=coco.SLOW,
    init=config.Init("fast", (("fast/vision/", "slow/encoder/vision/"),)),
    train=config.Train(steps=24_000, batch_size=8192),
  )


def distill() -> config.Config:
  return dataclasses.replace(
    slow(),
    stage="distill",
    distill=config.Distill(clusters=256, cluster_size=16, lists=65_536),
    init=config.Init("fast", teacher="slow"),
    train=config.Train(steps=6000, batch_size=16_384),
  )
