"""Scores of a sample while a stage trains, in memory that training has.

All pairs of a sample at once may need many times a step's memory. They are
scored in blocks instead, no larger than the part of a batch that a step holds
and split over the mesh as it is: where a stage trains, it also validates.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, UInt8

from fs_jax import config, types
from fs_jax.machine import sharding
from fs_jax.models import build
from fs_jax.runs import checkpoint


class Program(NamedTuple):
  """A sample's scores and the arguments of `score`, before anything has run.

  `params`, `visual` and `text` hold shapes and shardings, as in `step.Program`;
  blocks come first: [blocks, rows, ...] and [blocks, texts, L].
  """

  size: int  # visuals of the sample, and texts: one caption each
  # Jitted: (params, visual, text) -> [texts, visuals], on each device.
  score: jax.stages.Wrapped
  params: types.Params
  visual: jax.ShapeDtypeStruct
  text: jax.ShapeDtypeStruct


def sample_size(cfg: config.Config) -> int:
  """The sample's visuals; Slow, which scores all pairs, gets a quarter."""
  size = cfg.train.eval_sample
  return max(size // 4, 1) if cfg.stage == "slow" else size


def program(
  cfg: config.Config, vocabulary: int, mesh: Mesh, size: int | None = None
) -> Program:
  """The program of a validation of `cfg`, one for all of its blocks.

  Args:
    cfg: the stage's config.
    vocabulary: the tokenizer's number of tokens.
    mesh: the mesh; its devices may be descriptions only.
    size: the sample's visuals, where there are fewer than the config says.

  Raises:
    ValueError: a batch that the mesh cannot split.
  """
  sharding.check_batch(cfg.train.batch_size, mesh, parts=cfg.train.accumulate)
  size = sample_size(cfg) if size is None else size
  shapes = build.shapes(cfg, vocabulary)
  placed = sharding.of_params(cfg.mesh.rules, shapes, mesh)
  rows, texts = _block(cfg, mesh, size)
  by_row = NamedSharding(mesh, PartitionSpec(None, config.ROWS))
  # Slow compares each of a device's visuals with every text of a block.
  text_sharding = sharding.replicated(mesh) if cfg.stage == "slow" else by_row
  side = cfg.data.image_size
  score = _slow if cfg.stage == "slow" else _fast
  return Program(
    size,
    jax.jit(
      sharding.with_mesh(mesh, functools.partial(score, cfg, vocabulary, size)),
      out_shardings=sharding.replicated(mesh),
    ),
    checkpoint.abstract(shapes, placed),
    jax.ShapeDtypeStruct(
      (-(-size // rows), rows, cfg.data.frames, side, side, 3),
      jnp.uint8,
      sharding=by_row,
    ),
    jax.ShapeDtypeStruct(
      (-(-size // texts), texts, cfg.tokens.length),
      jnp.int32,
      sharding=text_sharding,
    ),
  )


def scores(
  program: Program,
  params: types.Params,
  visual: UInt8[np.ndarray, "S T H W 3"],
  text: Int[np.ndarray, "S L"],
) -> Float[np.ndarray, "S S"]:
  """Scores [texts, visuals] of a sample that every process holds.

  Args:
    program: the program for a sample of this size.
    params: parameters, placed as in training.
    visual: the sample's visuals.
    text: a caption of each.
  """
  placed = (
    sharding.spread(_in_blocks(x, like.shape), like.sharding)
    for x, like in ((visual, program.visual), (text, program.text))
  )
  return np.asarray(program.score(params, *placed))


def _block(cfg: config.Config, mesh: Mesh, size: int) -> tuple[int, int]:
  """Visuals and texts of a block: Slow's has the pairs of a step, or fewer."""
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  most = cfg.train.batch_size // cfg.train.accumulate
  pairs = most * cfg.data.captions_per_visual
  needed = -(-size // shards) * shards
  rows = min(most, needed)
  if cfg.stage == "slow":
    return rows, min(max(pairs // rows, 1), size)
  return rows, min(pairs, needed)


def _in_blocks(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Rows as [blocks, rows, ...], the last one repeated where some lack."""
  lacking = math.prod(shape[:2]) - len(x)
  filled = np.concatenate([x, x[-1:].repeat(lacking, axis=0)])
  return filled.reshape(shape)


def _fast(
  cfg: config.Config,
  vocabulary: int,
  size: int,
  params: types.Params,
  visual: UInt8[jax.Array, "b rows T H W 3"],
  text: Int[jax.Array, "c texts L"],
) -> Float[jax.Array, "S S"]:
  """g.f of the first `size` texts and visuals."""
  model = build.fast_model(cfg, vocabulary)
  call = functools.partial(build.apply, model, params["fast"])

  def of_visuals(block: UInt8[jax.Array, "rows T H W 3"]) -> jax.Array:
    return call(build.pixels(cfg, block), method="visual")

  f = jax.lax.map(of_visuals, visual).reshape(-1, cfg.fast.embed)
  g = jax.lax.map(lambda block: call(block, method="text"), text)
  return g.reshape(-1, cfg.fast.embed)[:size] @ f[:size].T


def _slow(
  cfg: config.Config,
  vocabulary: int,
  size: int,
  params: types.Params,
  visual: UInt8[jax.Array, "b rows T H W 3"],
  text: Int[jax.Array, "c texts L"],
) -> Float[jax.Array, "S S"]:
  """Slow's score of every pair of the first `size` texts and visuals."""
  model = build.slow_model(cfg, vocabulary)
  call = functools.partial(build.apply, model, params["slow"])

  def of_visuals(block: UInt8[jax.Array, "rows T H W 3"]) -> jax.Array:
    memory = call(build.pixels(cfg, block), method="encode_visual")

    def of_texts(texts: Int[jax.Array, "texts L"]) -> jax.Array:
      # Read anew for each block of visuals: kept, they would grow with both.
      states = call(texts, method="read")[None]
      each = jnp.broadcast_to(states, (block.shape[0], *states.shape[1:]))
      return call(memory, each, texts[None], method="score")

    table = jax.lax.map(of_texts, text)  # [blocks, rows, texts]
    return table.swapaxes(0, 1).reshape(block.shape[0], -1)

  table = jax.lax.map(of_visuals, visual)
  return table.reshape(-1, table.shape[-1])[:size, :size].T
