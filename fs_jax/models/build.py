"""The models that a config describes, and their first parameters.

Parameters are {"fast": ...} or {"slow": ...}: what a stage trains, and what its
checkpoints hold. Nothing here knows how they are trained.
"""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, UInt8

from fs_jax import config, types
from fs_jax.models import fast as fast_models
from fs_jax.models import slow as slow_models
from fs_jax.models import vision

Model = TypeVar("Model", bound=nn.Module)


def fast_model(cfg: config.Config, vocabulary: int) -> fast_models.Fast:
  """The dual encoder of `cfg`, over `vocabulary` tokens."""
  return fast_models.Fast(
    cfg.fast, vocabulary, cfg.tokens.length, jnp.dtype(cfg.compute)
  )


def slow_model(cfg: config.Config, vocabulary: int) -> slow_models.Slow:
  """The captioner of `cfg`, over `vocabulary` tokens."""
  assert cfg.slow is not None  # a config whose stage needs one has one
  return slow_models.Slow(
    cfg.slow, vocabulary, cfg.tokens.length, jnp.dtype(cfg.compute)
  )


def bind_fast(
  cfg: config.Config,
  vocabulary: int,
  params: types.Params,
  key: jax.Array | None = None,
) -> fast_models.Fast:
  """`fast_model` with `params`, its methods ready to call; `key`: dropout's."""
  return _bind(fast_model(cfg, vocabulary), params, key)


def bind_slow(
  cfg: config.Config,
  vocabulary: int,
  params: types.Params,
  key: jax.Array | None = None,
) -> slow_models.Slow:
  """`slow_model` with `params`, its methods ready to call; `key`: dropout's."""
  return _bind(slow_model(cfg, vocabulary), params, key)


def _bind(model: Model, params: types.Params, key: jax.Array | None) -> Model:
  rngs = None if key is None else {"dropout": key}
  return model.bind({"params": params}, rngs=rngs)


def apply(
  model: nn.Module, params: types.Params, *args: Any, **kwargs: Any
) -> Any:
  """Calls `model`, or its `method`, with `params` and no other collection."""
  return model.apply({"params": params}, *args, **kwargs)


def pixels(
  cfg: config.Config, visual: UInt8[types.Array, "B T H W C"]
) -> Float[jax.Array, "B T H W C"]:
  """Stored bytes scaled to [0, 1], then (x - mean) / std."""
  return vision.normalise(visual, cfg.data.mean, cfg.data.std)


def init_fast(
  cfg: config.Config, vocabulary: int, key: jax.Array
) -> types.Params:
  """First parameters of Fast: {"fast": ...}."""
  model = fast_model(cfg, vocabulary)
  return {"fast": model.init(key, *_sample(cfg))["params"]}


def init_slow(
  cfg: config.Config, vocabulary: int, key: jax.Array
) -> types.Params:
  """First parameters of Slow: {"slow": ...}."""
  model = slow_model(cfg, vocabulary)
  return {"slow": model.init(key, *_sample(cfg))["params"]}


def init(cfg: config.Config, vocabulary: int, key: jax.Array) -> types.Params:
  """First parameters of what `cfg.stage` trains."""
  make = init_slow if cfg.stage == "slow" else init_fast
  return make(cfg, vocabulary, key)


def shapes(cfg: config.Config, vocabulary: int) -> types.Params:
  """`init` without arrays: shapes and dtypes."""
  return jax.eval_shape(
    functools.partial(init, cfg, vocabulary), jax.random.key(0)
  )


def _sample(cfg: config.Config) -> tuple[types.Array, types.Array]:
  """One example's shapes, to initialise from."""
  size = cfg.data.image_size
  visual = jnp.zeros((1, cfg.data.frames, size, size, 3))
  return visual, jnp.ones((1, cfg.tokens.length), jnp.int32)
