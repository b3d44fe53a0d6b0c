"""Schedules, who decays, who stays frozen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fs_jax import config, trees
from fs_jax.train import optim, tasks
from tests.support import synthetic

# As the models name them; a stack of two layers, of width 4 in two heads.
SHAPES = {
  "slow": {
    "vision": {
      "blocks": {
        "query": {"kernel": (2, 4, 2, 2), "bias": (2, 2, 2)},
        "out": {"kernel": (2, 2, 2, 4), "bias": (2, 4)},
        "norm": {"scale": (2, 4)},
      },
      "position": (3, 4),
    },
    "readers_0": {
      "level0": {"up": {"kernel": (1, 4, 6), "bias": (1, 6)}},
      "tokens": {"embedding": (5, 4)},
    },
    "null": (2, 4),
    "log_scale": (),
  }
}


NAMES = ("adamw", "lion", "adafactor", "muon")


@pytest.fixture(scope="module")
def params():
  draw = np.random.default_rng(0)
  return jax.tree.map(
    lambda shape: draw.normal(0, 0.1, shape).astype(np.float32),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def updated(cfg, params, grads, steps=3):
  """Parameters after some steps with the same gradients."""
  optimizer = optim.optimizer(cfg, 10, params)

  @jax.jit
  def step(params, state):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params


def changed(before, after):
  """Names whose values differ in any bit."""
  return {
    name
    for name, a, b in zip(
      trees.names(before),
      jax.tree.leaves(before),
      jax.tree.leaves(after),
      strict=True,
    )
    if not np.array_equal(a, b)
  }


@pytest.mark.parametrize("name", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 4, 10, 99])
def test_schedules_warm_up_and_then_take_their_shape(name, warmup):
  cfg = config.Optim(learning_rate=2.0, schedule=name, warmup=warmup)
  rate = optim.schedule(cfg, steps=10)
  warm = min(warmup, 10)
  for step in range(10):
    if step < warm:
      want = 2.0 * step / warm
    elif name == "constant":
      want = 2.0
    else:
      done = (step - warm) / (10 - warm)
      want = 2.0 * 0.5 * (1 + np.cos(np.pi * done))
    np.testing.assert_allclose(rate(step), want, atol=1e-6)


@pytest.mark.parametrize("cooldown", [0.0, 0.5])
@pytest.mark.parametrize("name", ["rsqrt", "wsd"])
def test_schedules_that_cool_down(name, cooldown):
  cfg = config.Optim(
    learning_rate=2.0, schedule=name, warmup=4, cooldown=cooldown
  )
  rate = optim.schedule(cfg, steps=24)
  for step in range(25):
    want = 2.0 * min(step / 4, 1)
    if name == "rsqrt" and step > 4:
      want *= (4 / step) ** 0.5
    if cooldown and step > 14:
      want *= (24 - step) / 10
    np.testing.assert_allclose(rate(step), want, atol=1e-6, err_msg=step)


@pytest.mark.parametrize("name", NAMES)
def test_steps_go_down_and_are_as_large_as_the_rate_says(name, params):
  cfg = config.Optim(
    name=name, learning_rate=1e-3, warmup=0, schedule="constant"
  )
  cfg = dataclasses.replace(cfg, weight_decay=0.0)
  draw = np.random.default_rng(1)
  grads = jax.tree.map(
    lambda x: draw.normal(0, 1, x.shape).astype(np.float32), params
  )
  after = updated(cfg, params, grads, steps=1)
  for before, new, grad in zip(
    *map(jax.tree.leaves, (params, after, grads)), strict=True
  ):
    move = np.asarray(new) - before
    assert (move * grad).sum() < 0
    assert 1e-4 < np.sqrt((move**2).mean()) < 2e-3


def test_norms_are_of_towers():
  ones = lambda n: {"kernel": jnp.ones(n)}
  grads = {
    "fast": {
      "vision": ones(4),
      "vision_head": ones(5),
      "text_tower": ones(16),
      "log_scale": jnp.float32(2),
    }
  }
  got = {k: float(v) for k, v in optim.norms(grads).items()}
  assert got == pytest.approx(
    {
      "grad_norm": 29**0.5,
      "grad_norm/vision": 3.0,
      "grad_norm/text": 4.0,
    }
  )


@pytest.mark.parametrize("name", NAMES)
def test_only_named_parameters_decay(name, params):
  zeros = jax.tree.map(jnp.zeros_like, params)
  cfg = config.Optim(name=name, warmup=0, weight_decay=0.5)
  after = updated(cfg, params, zeros)
  moved = changed(params, after)
  named = {n for n in trees.names(params) if n.endswith(("/kernel", "bedding"))}
  assert moved == named
  assert 0 < len(named) < len(trees.names(params))
  # Decay pulls towards zero: (1 - rate * decay) a step.
  rates = [optim.schedule(cfg, 10)(i) for i in range(3)]
  shrunk = np.prod([1 - float(r) * 0.5 for r in rates])
  for name_, a, b in zip(
    trees.names(params),
    jax.tree.leaves(params),
    jax.tree.leaves(after),
    strict=True,
  ):
    if name_ in named:
      np.testing.assert_allclose(b, a * shrunk, rtol=1e-5, err_msg=name_)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_keep_every_bit(name, params):
  ones = jax.tree.map(jnp.ones_like, params)
  cfg = config.Optim(name=name, warmup=0, freeze=(".*/vision/.*", "slow/null"))
  moved = changed(params, updated(cfg, params, ones))
  kept = {n for n in trees.names(params) if "/vision/" in n or n == "slow/null"}
  assert len(kept) == 7
  assert moved == set(trees.names(params)) - kept


def test_frozen_gradients_do_not_eat_the_clip(params):
  """The norm that is clipped is that of what is trained."""
  big = trees.map_named(
    lambda n, x: jnp.full_like(x, 1e6 if "/vision/" in n else 1e-4), params
  )
  small_ = trees.map_named(lambda n, x: jnp.full_like(x, 1e-4), params)
  cfg = config.Optim(warmup=0, freeze=(".*/vision/.*",), clip=1.0)
  one, other = (updated(cfg, params, g, steps=1) for g in (big, small_))
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_clip_bounds_the_norm_and_zero_never_does():
  params = {"a": {"kernel": jnp.zeros(3), "embedding": jnp.zeros(1)}}
  grads = {"a": {"kernel": jnp.full(3, 40.0), "embedding": jnp.zeros(1)}}

  def first_moment(clip):
    cfg = config.Optim(clip=clip, b1=0.0)
    optimizer = optim.optimizer(cfg, 10, params)
    state = optimizer.update(grads, optimizer.init(params), params)[1]
    by_name = dict(zip(trees.names(state), jax.tree.leaves(state), strict=True))
    (mu,) = (x for n, x in by_name.items() if n.endswith("mu/a/kernel"))
    return np.linalg.norm(mu)

  np.testing.assert_allclose(first_moment(1.0), 1.0, rtol=1e-5)
  np.testing.assert_allclose(first_moment(0.0), 40 * 3**0.5, rtol=1e-5)


def test_muon_orthogonalises_each_matrix_of_a_stack(params):
  """Layers of a scanned stack are apart: one's gradient moves one only."""

  def at_first(name, x):
    grad = np.zeros_like(x)
    if "/blocks/mlp/up/kernel" in name:
      grad[0] = np.random.default_rng(0).normal(size=x.shape[1:])
    return grad

  two = {
    "blocks": {
      "mlp": {"up": {"kernel": np.ones((2, 4, 6), np.float32)}},
      "embedding": np.ones(1, np.float32),
    }
  }
  two = {"x": two}
  cfg = config.Optim(name="muon", warmup=0, weight_decay=0.0, clip=0.0)
  after = updated(cfg, two, trees.map_named(at_first, two), steps=1)
  moved = np.asarray(after["x"]["blocks"]["mlp"]["up"]["kernel"]) - 1
  assert (moved[1] == 0).all()
  values = np.linalg.svd(moved[0], compute_uv=False)
  assert values.max() / values.min() < 2  # near orthogonal: all much alike


@pytest.mark.parametrize("field", ["decay", "freeze"])
@pytest.mark.parametrize("pattern", [".*/kernle", "kernel", "("])
def test_a_pattern_that_names_nothing_is_refused(field, pattern, params):
  cfg = config.Optim(**{field: (".*/kernel", pattern)})
  with pytest.raises(ValueError) as error:
    optim.optimizer(cfg, 10, params)
  said = str(error.value)
  assert said.startswith(f"optim.{field}: ")
  assert f"got {pattern!r}" in said


@pytest.mark.parametrize("stage", ["fast", "slow"])
def test_muon_knows_inputs_and_outputs_of_every_kernel(stage):
  """Of the real models: each layer of a stack is a matrix, heads flattened."""
  cfg = synthetic.cfg(stage, optim={"name": "muon", "warmup": 0})
  params = jax.tree.map(
    lambda x: jnp.full(x.shape, 0.1),
    jax.eval_shape(
      tasks.make(cfg, synthetic.VOCABULARY).init, jax.random.key(0)
    ),
  )
  found = trees.map_named(lambda n, x: (n, x, optim._as_matrix(n, x)), params)
  leaf = lambda x: isinstance(x, tuple) and isinstance(x[0], str)
  kernels = set()
  for name, x, dims in jax.tree.leaves(found, is_leaf=leaf):
    assert (dims is not None) == name.endswith("/kernel"), name
    if dims is None:
      continue
    kernels.add(name)
    inputs, outputs = dims.reduction_axis, dims.output_axis
    stacked = "/blocks/" in name or "/level" in name
    axes = (*range(int(stacked)), *inputs, *outputs)
    assert axes == tuple(range(x.ndim)), name
    if stacked:
      assert x.shape[0] == 1, name  # layers of each stack and level here
    rows, columns = (
      int(np.prod([x.shape[i] for i in part])) for part in (inputs, outputs)
    )
    assert rows * columns * (x.shape[0] if stacked else 1) == x.size
    # A dense layer adds a bias to its outputs: what has none is none.
    parent = params
    for key in name.split("/")[:-1]:
      parent = parent[key]
    assert parent["bias"].shape[int(stacked) :] == tuple(
      x.shape[i] for i in outputs
    ), name
  assert len(kernels) > 10
  draw = np.random.default_rng(0)
  grads = jax.tree.map(
    lambda x: draw.normal(size=x.shape).astype(np.float32), params
  )
  assert changed(params, updated(cfg.optim, params, grads, steps=1)) >= kernels


def test_a_running_mean_forgets_where_it_began():
  """However slow it is in the end; a constant 0.9999 leaves 30 % of it."""
  cfg = config.Optim(ema=0.9999)
  steps = np.arange(12_000)
  decays = np.asarray(jax.vmap(lambda s: optim.ema_decay(cfg, s))(steps))
  assert decays[0] == np.float32(0.1)
  assert (np.diff(decays) >= 0).all() and decays[-1] < 0.9999
  assert np.log(decays.astype(float)).sum() < np.log(1e-6)
  assert optim.ema_decay(cfg, 10**6) == np.float32(0.9999)
  assert optim.ema_decay(config.Optim(ema=0.5), 8) == 0.5
