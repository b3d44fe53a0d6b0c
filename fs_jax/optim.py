"""The optimiser, from optax: schedule, decay and freezing by parameter path."""

import re
from collections.abc import Sequence

import jax.numpy as jnp
import optax

from fs_jax import config, paths, types


def schedule(cfg: config.Optim, steps: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up, then the named shape."""
  warmup = min(cfg.warmup, steps)
  if cfg.schedule == "constant":
    if not warmup:  # optax would stay at the first value, 0
      return optax.constant_schedule(cfg.learning_rate)
    return optax.warmup_constant_schedule(0.0, cfg.learning_rate, warmup)
  return optax.warmup_cosine_decay_schedule(
    0.0, cfg.learning_rate, warmup, max(steps, warmup + 1)
  )


def optimizer(
  cfg: config.Optim, steps: int, params: types.Params
) -> optax.GradientTransformation:
  """As `cfg.name` says; `params` has the names that decay and freeze speak of.

  Raises:
    ValueError: a pattern of `decay` or `freeze` that names no parameter, or is
      no regular expression.
  """
  decayed = _mask(params, cfg.decay, "optim.decay")
  rate = schedule(cfg, steps)
  if cfg.name == "muon":
    matrices = optax.contrib.muon(
      rate,
      adam_b1=cfg.b1,
      adam_b2=cfg.b2,
      muon_weight_dimension_numbers=paths.map_named(_as_matrix, params),
      consistent_rms=0.2,  # steps as large as Adam's: one learning rate for all
    )
    # Its own decay has no mask for what is no matrix: biases would decay too.
    decay = optax.add_decayed_weights(
      lambda step: -cfg.weight_decay * rate(step), decayed
    )
    update = optax.chain(matrices, decay)
  else:
    update = optax.adamw(
      rate,
      b1=cfg.b1,
      b2=cfg.b2,
      weight_decay=cfg.weight_decay,
      mask=decayed,
    )
  clip = optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity()
  chain = optax.chain(clip, update)
  if not cfg.freeze:
    return chain
  frozen = _mask(params, cfg.freeze, "optim.freeze")
  labels = paths.map_named(lambda _, f: "frozen" if f else "trained", frozen)
  return optax.partition(
    {"trained": chain, "frozen": optax.set_to_zero()}, labels
  )


def _as_matrix(
  name: str, leaf: types.Array
) -> optax.contrib.MuonDimensionNumbers | None:
  """Which axes of a kernel are inputs and which outputs; None: not a matrix.

  A scanned stack has its layers in front, each a matrix of its own; attention
  splits a width into heads, which belong together; a convolution's inputs are
  its whole window.
  """
  if not name.endswith("/kernel"):
    return None
  first = int(bool(re.search(r"/(blocks|level\d)/", name)))
  axes = tuple(range(first, leaf.ndim))
  inputs = 1
  if len(axes) == 4:  # [height, width, in, out]
    inputs = 3
  elif len(axes) == 3 and "/out/" in name:  # [heads, each, out]
    inputs = 2
  return optax.contrib.MuonDimensionNumbers(axes[:inputs], axes[inputs:])


def global_norm(tree: types.Params) -> types.Array:
  return optax.tree.norm(tree).astype(jnp.float32)


def _mask(
  params: types.Params, patterns: Sequence[str], field: str
) -> types.Params:
  names = paths.names(params)
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(
        f"{field}: a pattern is a regular expression; got {pattern!r} "
        f"({error}). mend it"
      ) from None
    if not any(re.fullmatch(pattern, name) for name in names):
      raise ValueError(
        f"{field}: every pattern must name a parameter; got {pattern!r}. "
        f"names look like {names[0]!r}"
      )
  return paths.map_named(
    lambda name, _: any(re.fullmatch(p, name) for p in patterns), params
  )
