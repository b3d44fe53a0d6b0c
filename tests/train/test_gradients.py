"""A batch in parts has the gradient of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fs_jax import config, types
from fs_jax.machine import sharding
from fs_jax.train import gradients, tasks
from tests.support import synthetic

ON = sharding.mesh(config.Mesh(1), jax.devices()[:1])


def setting(stage, **fields):
  """Task, parameters, frozen ones and a batch in which something is masked."""
  cfg = synthetic.cfg(
    stage, distill={"clusters": 4, "cluster_size": 2}, **fields
  )
  task = tasks.make(cfg, synthetic.VOCABULARY, ON)
  draw = np.random.default_rng(0)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  shapes = shapes, tasks.frozen_shapes(cfg, synthetic.VOCABULARY)
  params, frozen = jax.tree.map(
    lambda x: jnp.asarray(draw.normal(0.1, 0.3, x.shape), jnp.float32), shapes
  )
  captions = 1 if stage == "distill" else 2
  batch = synthetic.batch(1, captions=captions)
  mask = np.arange(8) != 5
  ids = np.array([0, 1, 2, 3, 4, 5, 0, 7], np.int32)  # 0 and 6: one visual
  batch = batch._replace(mask=mask, visual_id=ids)
  if stage == "distill":
    frozen |= {"gamma": jnp.float32(0.5), "tau": jnp.float32(0.7)}
    batch = types.DistillBatch(batch, synthetic.batch(2))
  return task, params, frozen, batch


@pytest.mark.parametrize(
  ("stage", "fields", "parts"),
  [
    ("fast", {}, 2),
    ("fast", {"fast": {"loss": "sigmoid", "chunk": 3}}, 4),
    ("slow", {"slow": synthetic.slow(null_rate=0.0, levels=1)}, 4),
    ("distill", {"slow": synthetic.slow(levels=1)}, 2),
  ],
)
def test_parts_have_the_gradient_of_the_whole(stage, fields, parts):
  task, params, frozen, batch = setting(stage, **fields)
  key = jax.random.key(3)
  with jax.default_matmul_precision("highest"):
    (want, metrics), slope = jax.jit(gradients.value_and_grad(task))(
      params, frozen, batch, key
    )
    (got, others), found = jax.jit(gradients.value_and_grad(task, parts))(
      params, frozen, batch, key
    )
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for name, value in metrics.items():
    np.testing.assert_allclose(others[name], value, rtol=1e-5, err_msg=name)
  largest = max(jnp.abs(x).max() for x in jax.tree.leaves(slope))
  assert largest > 1e-3
  for a, b in zip(*map(jax.tree.leaves, (slope, found)), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * largest)


def test_a_batch_in_parts_is_no_mean_of_small_batches():
  """What the test above would miss if parts were told apart by themselves."""
  task, params, frozen, batch = setting("fast")
  batch = jax.tree.map(jnp.asarray, batch)
  half = gradients.split(batch, task.split_limits(batch)[0], 2)
  half = jax.tree.map(lambda x: x[0], half)
  key = jax.random.key(0)
  (alone, _), _ = jax.jit(gradients.value_and_grad(task))(
    params, frozen, half, key
  )
  (whole, _), _ = jax.jit(gradients.value_and_grad(task))(
    params, frozen, batch, key
  )
  assert abs(alone - whole) > 0.1


@pytest.mark.parametrize(("rows", "groups", "parts"), [(8, 8, 2), (12, 4, 2)])
def test_split_deals_whole_groups_and_join_undoes_it(rows, groups, parts):
  x = {"a": jnp.arange(2 * rows).reshape(rows, 2), "b": jnp.arange(rows)}
  dealt = gradients.split(x, groups, parts)
  own = np.arange(rows).reshape(groups, -1)
  for part in range(parts):
    np.testing.assert_array_equal(
      dealt["b"][part], own[part::parts].reshape(-1)
    )
  back = gradients.join(dealt, groups)
  jax.tree.map(np.testing.assert_array_equal, back, x)
