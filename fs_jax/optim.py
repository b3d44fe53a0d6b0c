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
    return optax.warmup_constant_schedule(0.0, cfg.learning_rate, warmup)
  return optax.warmup_cosine_decay_schedule(
    0.0, cfg.learning_rate, warmup, max(steps, warmup + 1)
  )


def optimizer(
  cfg: config.Optim, steps: int, params: types.Params
) -> optax.GradientTransformation:
  """AdamW; `params` gives the names that decay and freezing speak of.

  Raises:
    ValueError: a pattern of `decay` or `freeze` that names no parameter.
  """
  decayed = _mask(params, cfg.decay, "optim.decay")
  adamw = optax.adamw(
    schedule(cfg, steps),
    b1=cfg.b1,
    b2=cfg.b2,
    weight_decay=cfg.weight_decay,
    mask=decayed,
  )
  clip = optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity()
  chain = optax.chain(clip, adamw)
  if not cfg.freeze:
    return chain
  frozen = _mask(params, cfg.freeze, "optim.freeze")
  labels = paths.map_named(lambda _, f: "frozen" if f else "trained", frozen)
  return optax.partition(
    {"trained": chain, "frozen": optax.set_to_zero()}, labels
  )


def global_norm(tree: types.Params) -> types.Array:
  return optax.tree.norm(tree).astype(jnp.float32)


def _mask(
  params: types.Params, patterns: Sequence[str], field: str
) -> types.Params:
  names = paths.names(params)
  for pattern in patterns:
    if not any(re.fullmatch(pattern, name) for name in names):
      raise ValueError(
        f"{field}: every pattern must name a parameter; got {pattern!r}. "
        f"names look like {names[0]!r}"
      )
  return paths.map_named(
    lambda name, _: any(re.fullmatch(p, name) for p in patterns), params
  )
