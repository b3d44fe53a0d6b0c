"""The smallest configs and batches that still have every part."""

import dataclasses
from typing import Any, Literal

import numpy as np

from fs_jax import config, types

VOCABULARY, LENGTH, IMAGE = 12, 7, 16
# What a clock, and not the seed, puts into a line of metrics.jsonl.
CLOCKED = {
  *("time", "examples_per_second", "eta_seconds", "useful_seconds", "goodput"),
  *("step_seconds", "step_data_seconds", "step_device_seconds"),
  *("step_host_seconds", "host_memory_gib", "tflops_per_second", "mfu"),
}


def stack(layers: int = 1, **fields: Any) -> config.Stack:
  return config.Stack(
    **{"width": 16, "heads": 2, "hidden": 32} | fields, layers=layers
  )


def vision(
  pool: Literal["map", "mean", "class"] = "map", **fields: Any
) -> config.Vision:
  return config.Vision(stack(**fields), patch=8, pool=pool)


def slow(**fields: Any) -> config.Slow:
  """Two levels of two layers in all: 4 and then 16 tokens of 8 numbers."""
  defaults = {
    "vision": vision(),
    "decoder": stack(2),
    "levels": 2,
    "widths": (8,),
    "stem": 8,
    "d_mem": 8,
  }
  return config.Slow(**defaults | fields)


def cfg(
  stage: Literal["fast", "slow", "distill"] = "fast", **fields: Any
) -> config.Config:
  """A stage; a field such as data={"frames": 2} changes a part of its value."""
  teacher = "slow" if stage == "distill" else ""
  values: dict[str, Any] = {
    "fast": config.Fast(vision(), config.Text(stack()), embed=8),
    "slow": None if stage == "fast" else slow(),
    "data": config.Data(image_size=IMAGE),
    "tokens": config.Tokens(length=LENGTH),
    "distill": config.Distill(clusters=2, cluster_size=4, lists=6),
    "optim": config.Optim(learning_rate=3e-3, warmup=2),
    "init": config.Init("fast" if teacher else "", teacher=teacher),
    "train": config.Train(steps=4, batch_size=8, log_every=2, save_every=2),
  }
  for name, value in fields.items():
    if isinstance(value, dict):
      value = dataclasses.replace(values[name], **value)
    values[name] = value
  return config.Config(stage, **values)


def text(rng: np.random.Generator, rows: int) -> np.ndarray:
  """Rows of BOS, one to LENGTH - 2 words, EOS and padding."""
  made = np.zeros((rows, LENGTH), np.int32)
  for row in made:
    words = rng.integers(1, LENGTH - 1)
    row[0], row[words + 1] = 2, 3
    row[1 : words + 1] = rng.integers(4, VOCABULARY, words)
  return made


def batch(
  seed: int = 0, rows: int = 8, captions: int = 1, frames: int = 1
) -> types.Batch:
  rng = np.random.default_rng(seed)
  shape = (rows, frames, IMAGE, IMAGE, 3)
  return types.Batch(
    visual=rng.integers(0, 256, shape, np.uint8),
    text=text(rng, rows * captions),
    visual_id=np.arange(rows, dtype=np.int32),
    text_id=np.arange(rows * captions, dtype=np.int32),
    mask=np.ones(rows, bool),
  )
