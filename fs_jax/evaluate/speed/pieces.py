"""The step of training on one device, and pieces of it, as calls to time.

Of every stage: the step as training runs it, its gradient, its forward pass and
its optimiser. Of Fast also the towers, the pieces of a vision block and what
surrounds the blocks, each forward and backward. How they are timed is left to
`train_step`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fs_jax import config, types
from fs_jax.machine import sharding
from fs_jax.models import attention as attentions
from fs_jax.models import blocks, build, layers, vision
from fs_jax.train import gradients, losses
from fs_jax.train import step as steps

Piece = Callable[[], Any]  # one run, on arguments of its own
WHOLE = ("step", "gradient", "forward", "optimiser")  # of every stage


def make(cfg: config.Config, program: steps.Program) -> dict[str, Piece]:
  """Makes the calls that `count_calls` names, on random data."""
  whole = _WholeStep(cfg, program, _random_batch(cfg))
  pieces: dict[str, Piece] = {
    "step": whole.step,
    "gradient": whole.gradient,
    "forward": whole.forward,
    "optimiser": whole.update,
  }
  if cfg.stage == "fast":
    pieces |= _towers(cfg, whole) | _block(cfg) | _ends(cfg, whole.batch)
  return pieces


def count_calls(cfg: config.Config) -> dict[str, int]:
  """The pieces that are timed, and how often a step does each.

  Blocks are those of vision only: the text's have other sizes.
  """
  whole = dict.fromkeys(WHOLE, 1)
  if cfg.stage != "fast":
    return whole
  depth = cfg.fast.vision.stack.layers
  return (
    whole
    | dict.fromkeys(("vision", "text"), 1)
    | dict.fromkeys(("mlp", "attention", "attend"), depth)
    | {"product": 2 * depth, "norm": 2 * depth + 1, "gelu": depth}
    | dict.fromkeys(("patches", "lookup", "loss"), 1)
  )


class _WholeStep:
  """The step of training and its gradient, forward pass and optimiser.

  They share one state, which the step and the optimiser advance.
  """

  def __init__(
    self, cfg: config.Config, program: steps.Program, batch: types.Batch
  ):
    self.batch = sharding.put(batch, sharding.batch(program.mesh))
    self.state = steps.init(cfg, program)
    self._key = key = jax.random.key(0)
    self._grads: types.Params | None = None
    task, optimizer = program.task, program.optimizer

    def forward(params: types.Params, batch: types.Batch) -> types.Array:
      rows = task.encode(params, {}, batch, key)
      return task.loss(params, rows, batch)[0]

    def update(
      grads: types.Params, state: types.TrainState
    ) -> types.TrainState:
      updates, opt_state = optimizer.update(
        grads, state.opt_state, state.params
      )
      params = optax.apply_updates(state.params, updates)
      return state._replace(params=params, opt_state=opt_state)

    self._step = program.step.lower(
      program.state, program.frozen, program.batch
    ).compile()
    self._gradient = jax.jit(
      gradients.value_and_grad(task, cfg.train.accumulate)
    )
    self._forward = jax.jit(forward)
    # What is donated must be in the order of the results, as in the step:
    # moments would lie where parameters were, and a CPU then copies them all, 5
    # times as slow.
    self._update = jax.jit(update, donate_argnums=1)

  def step(self) -> types.Array:
    self.state, metrics = self._step(self.state, {}, self.batch)
    return metrics["loss"]

  def gradient(self) -> Any:
    return self._gradient(self.state.params, {}, self.batch, self._key)

  def forward(self) -> types.Array:
    return self._forward(self.state.params, self.batch)

  def update(self) -> types.TrainState:
    if self._grads is None:
      self._grads = self.gradient()[1]
    self.state = self._update(self._grads, self.state)
    return self.state


def _random_batch(cfg: config.Config) -> types.Batch:
  """Random pictures and full captions, all different."""
  rng = np.random.default_rng(0)
  rows, size = cfg.train.batch_size, cfg.data.image_size
  texts = rows * cfg.data.captions_per_visual
  pixels = (rows, cfg.data.frames, size, size, 3)
  tokens = (texts, cfg.tokens.length)
  return types.Batch(
    visual=rng.integers(0, 256, pixels, np.uint8),
    text=rng.integers(1, cfg.tokens.vocabulary, tokens, np.int32),
    visual_id=np.arange(rows, dtype=np.int32),
    text_id=np.arange(texts, dtype=np.int32),
    mask=np.ones(rows, bool),
  )


def _towers(cfg: config.Config, whole: _WholeStep) -> dict[str, Piece]:
  """Both towers of Fast, on the parameters that the step trains."""
  model, batch = build.fast_model(cfg, cfg.tokens.vocabulary), whole.batch

  def encode_visual(params: types.Params, visual: types.Array) -> types.Array:
    pixels = build.pixels(cfg, visual)
    return build.apply(model, params, pixels, True, method="visual")

  def encode_text(params: types.Params, ids: types.Array) -> types.Array:
    return build.apply(model, params, ids, True, method="text")

  def parameters(tower: str) -> types.Params:
    """A tower's, and the scale: Fast binds it in every method."""
    named = whole.state.params["fast"].items()
    return {k: v for k, v in named if k.startswith((tower, "log_scale"))}

  visual, text = _with_gradients(encode_visual), _with_gradients(encode_text)
  return {
    "vision": lambda: visual((parameters("vision"),), (batch.visual,)),
    "text": lambda: text((parameters("text"),), (batch.text,)),
  }


def _block(cfg: config.Config) -> dict[str, Piece]:
  """The pieces of a vision block, on random activations."""
  stack, dtype = cfg.fast.vision.stack, jnp.dtype(cfg.compute)
  rows, width = cfg.train.batch_size, stack.width
  tokens = (cfg.data.image_size // cfg.fast.vision.patch) ** 2 + 1
  draw = _Draw(dtype)
  x, hidden = draw(rows, tokens, width), draw(rows, tokens, stack.hidden)
  heads = (rows, tokens, stack.heads, width // stack.heads)
  attention = attentions.Attention(stack.heads, dtype)

  def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return attentions.attend(query, key, value, None)

  def bind_module(module: nn.Module) -> Piece:
    return _bind(module.apply, _init(module, x), x)

  return {
    "product": bind_module(layers.Dense(stack.hidden, dtype)),
    "attend": _bind(attend, *(draw(*heads) for _ in range(3))),
    "norm": bind_module(layers.Norm(dtype=dtype)),
    "gelu": _bind(nn.gelu, hidden),
    "mlp": bind_module(blocks.Mlp(stack.hidden, dtype)),
    "attention": _bind(
      lambda params, y: attention.apply(params, y, y), _init(attention, x, x), x
    ),
  }


def _ends(cfg: config.Config, batch: types.Batch) -> dict[str, Piece]:
  """The pieces around the blocks: patches, the lookup of tokens, the loss."""
  dtype = jnp.dtype(cfg.compute)
  frames = build.pixels(cfg, batch.visual)[:, 0]
  patches = vision.PatchEmbed(
    cfg.fast.vision.patch, 0, cfg.fast.vision.stack.width, dtype
  )
  lookup = layers.Embed(cfg.tokens.vocabulary, cfg.fast.text.stack.width, dtype)
  draw = _Draw(jnp.dtype(jnp.float32))
  sides = [draw(cfg.train.batch_size, cfg.fast.embed) for _ in range(2)]
  sides = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in sides]
  ids = batch.visual_id, batch.text_id, batch.mask

  def loss(
    visual: jax.Array, text: jax.Array, scale: jax.Array, *ids: jax.Array
  ) -> types.Array:
    return losses.info_nce(losses.Pairs(visual, text, *ids), scale)[0]

  def bind_embedding(module: nn.Module, given: types.Array) -> Piece:
    """Takes no gradient by the input, which is data."""
    return _bind(module.apply, _init(module, given), given=(given,))

  return {
    "patches": bind_embedding(patches, frames),
    "lookup": bind_embedding(lookup, batch.text),
    "loss": _bind(loss, *sides, jnp.float32(14.0), given=ids),
  }


class _Draw:
  """Random arrays of a dtype, each different."""

  def __init__(self, dtype: jnp.dtype):
    self.dtype, self.count = dtype, 0

  def __call__(self, *shape: int) -> jax.Array:
    self.count += 1
    return jax.random.normal(jax.random.key(self.count), shape, self.dtype)


def _init(module: nn.Module, *args: Any) -> Any:
  return jax.jit(module.init)(jax.random.key(0), *args)


def _with_gradients(fn: Callable[..., Any]) -> Callable[..., Any]:
  """(args, given) -> value and gradients by `args`, for one fixed cotangent.

  Everything is an argument of the compiled program: XLA would compute with a
  constant at compile time.
  """

  @jax.jit
  def pulled(
    cotangent: jax.Array, args: tuple[Any, ...], given: tuple[Any, ...]
  ) -> Any:
    out, back = jax.vjp(lambda *a: fn(*a, *given), *args)
    return out, back(cotangent)

  cotangent: jax.Array | None = None

  def run(args: tuple[Any, ...], given: tuple[Any, ...] = ()) -> Any:
    nonlocal cotangent
    if cotangent is None:
      out = jax.eval_shape(fn, *args, *given)
      cotangent = jax.random.normal(jax.random.key(0), out.shape, out.dtype)
    return pulled(cotangent, args, given)

  return run


def _bind(
  fn: Callable[..., Any], *args: Any, given: tuple[Any, ...] = ()
) -> Piece:
  """A call of `fn` and its gradients by `args`."""
  run = _with_gradients(fn)
  return lambda: run(args, given)
