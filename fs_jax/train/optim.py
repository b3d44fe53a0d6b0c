"""The optimiser, from optax: schedule, decay and freezing by parameter path."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from fs_jax import config, trees, types


def schedule(cfg: config.Optim, steps: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up, then the named shape.

  rsqrt is peak * sqrt(warmup / step), wsd (warm-up, stable, decay) stays at the
  peak; the last `cooldown` of the steps takes both to 0 in a straight line.
  """
  warmup = min(cfg.warmup, steps)
  peak = cfg.learning_rate
  if cfg.schedule == "constant":
    if not warmup:  # optax would stay at the first value, 0
      return optax.constant_schedule(peak)
    return optax.warmup_constant_schedule(0.0, peak, warmup)
  if cfg.schedule == "cosine":
    return optax.warmup_cosine_decay_schedule(
      0.0, peak, warmup, max(steps, warmup + 1)
    )
  cooldown = round(cfg.cooldown * (steps - warmup))

  def rate(step: types.Array) -> types.Array:
    at = jnp.asarray(step, jnp.float32)
    factor = peak * jnp.ones_like(at)
    if warmup:
      factor *= jnp.minimum(at / warmup, 1.0)
    if cfg.schedule == "rsqrt":
      factor *= jnp.sqrt(warmup / jnp.maximum(at, warmup))
    if cooldown:
      factor *= jnp.clip((steps - at) / cooldown, 0.0, 1.0)
    return factor

  return rate


def optimizer(
  cfg: config.Optim, steps: int, params: types.Params
) -> optax.GradientTransformation:
  """The optimiser named by `cfg.name`; clips, decays and freezes as `cfg` says.

  Args:
    cfg: its settings.
    steps: the run's length, which the schedule needs.
    params: the parameters, or their shapes; `cfg.decay` and `cfg.freeze` match
      their names.

  Raises:
    ValueError: a pattern of `decay` or `freeze` that names no parameter, or is
      no regular expression.
  """
  decayed = _mask(params, cfg.decay, "optim.decay")
  update = _update(cfg, schedule(cfg, steps), params, decayed)
  clip = optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity()
  chain = optax.chain(clip, update)
  if not cfg.freeze:
    return chain
  labels = jax.tree.map(
    lambda f: "frozen" if f else "trained", frozen(cfg, params)
  )
  return optax.partition(
    {"trained": chain, "frozen": optax.set_to_zero()}, labels
  )


def frozen(cfg: config.Optim, params: types.Params) -> types.Params:
  """Which parameters keep their first value, as a tree of bool.

  Raises:
    ValueError: as `optimizer`.
  """
  return _mask(params, cfg.freeze, "optim.freeze")


def _update(
  cfg: config.Optim,
  rate: optax.Schedule,
  params: types.Params,
  decayed: types.Params,
) -> optax.GradientTransformation:
  """The update named by `cfg.name`, weight decay of `decayed` included.

  All take steps about as large as Adam's: one learning rate serves them all.
  """
  match cfg.name:
    case "adamw" | "lion":
      make = {"adamw": optax.adamw, "lion": optax.lion}[cfg.name]
      return make(
        rate,
        b1=cfg.b1,
        b2=cfg.b2,
        weight_decay=cfg.weight_decay,
        mask=decayed,
      )
    case "adafactor":
      # Second moments by row and column: its state is a fraction of Adam's.
      update = optax.adafactor(
        rate, multiply_by_parameter_scale=False, clipping_threshold=1.0
      )
    case "muon":
      update = optax.contrib.muon(
        rate,
        adam_b1=cfg.b1,
        adam_b2=cfg.b2,
        muon_weight_dimension_numbers=trees.map_named(_as_matrix, params),
        consistent_rms=0.2,  # as large as Adam's steps
      )
  # Muon's own decay has no mask for what is no matrix: biases would decay too.
  decay = optax.add_decayed_weights(
    lambda step: -cfg.weight_decay * rate(step), decayed
  )
  return optax.chain(update, decay)


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


def ema_decay(cfg: config.Optim, step: types.Array) -> types.Array:
  """The share of the running mean that a step keeps: `cfg.ema`, less at first.

  (1 + step) / (10 + step) until that is more, so that little is left of the
  first parameters however short the run is: after 12,000 steps a constant
  0.9999 would leave 30 % of them, this less than a millionth.
  """
  at = jnp.asarray(step, jnp.float32)
  return jnp.minimum(cfg.ema, (1 + at) / (10 + at))


def norms(grads: types.Params) -> dict[str, types.Array]:
  """Norm of a gradient, and of each tower's part of it.

  A part's tower is its name up to the first "_": Fast has vision and text, Slow
  encoder and readers.
  """
  towers: dict[str, list[types.Params]] = {}
  for model in grads.values():
    for name, part in model.items():
      if isinstance(part, dict):
        towers.setdefault(name.split("_")[0], []).append(part)
  whole = {"grad_norm": _norm(grads)}
  return whole | {f"grad_norm/{name}": _norm(x) for name, x in towers.items()}


def _norm(tree: types.Params) -> types.Array:
  return optax.tree.norm(tree).astype(jnp.float32)


def _mask(
  params: types.Params, patterns: Sequence[str], field: str
) -> types.Params:
  names = trees.names(params)
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(
        f"{field}: a pattern is a regular expression; got {pattern!r} "
        f"({error}). correct the pattern"
      ) from None
    if not any(re.fullmatch(pattern, name) for name in names):
      raise ValueError(
        f"{field}: every pattern must name a parameter; got {pattern!r}. "
        f"names look like {names[0]!r}"
      )
  return trees.map_named(
    lambda name, _: any(re.fullmatch(p, name) for p in patterns), params
  )
