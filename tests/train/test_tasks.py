"""The matching baseline: which pairs it is shown, and how they are drawn."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fs_jax import config
from fs_jax.machine import sharding
from fs_jax.models import build
from fs_jax.train import gradients, losses, tasks
from tests.support import synthetic

B = 8
QUICK = {"xla_backend_optimization_level": 0}
quick = functools.partial(jax.jit, compiler_options=QUICK)


@functools.cache
def setting(**fields):
  """Config, task, parameters of Slow and of Fast, and a batch."""
  cfg = synthetic.cfg(
    "slow",
    slow=synthetic.slow(loss="matching", levels=1),
    init=config.Init(teacher="fast"),
    **fields,
  )
  task = tasks.make(cfg, synthetic.VOCABULARY)
  draw = np.random.default_rng(0)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  shapes = shapes, tasks.frozen_shapes(cfg, synthetic.VOCABULARY)
  params, frozen = jax.tree.map(
    lambda x: jnp.asarray(draw.normal(0, 0.3, x.shape), jnp.float32), shapes
  )
  return cfg, task, params, frozen, synthetic.batch(1)


def test_each_pair_is_scored_with_a_hard_text_and_a_hard_visual():
  """(own, own), (own, drawn text), (drawn visual, own)."""
  cfg, task, params, frozen, batch = setting()
  texts = jnp.asarray([3, 4, 0, 7, 1, 2, 5, 6])
  visuals = jnp.asarray([5, 5, 6, 1, 0, 7, 3, 2])
  drawn = texts, visuals, jnp.ones((B, 3))
  with mock.patch.object(tasks, "_draw_negatives", return_value=drawn):
    # Not the function itself: what is traced of it here is of this test.
    rows = quick(lambda *args: task.encode(*args))(
      params, frozen, batch, jax.random.key(0)
    )
  model = build.slow_model(cfg, synthetic.VOCABULARY)

  @quick
  def score(visual, text):  # all pairs: [texts, visuals]
    call = functools.partial(build.apply, model, params["slow"])
    memory = call(build.pixels(cfg, visual), method="encode_visual")
    states = call(text, method="read")[None].repeat(B, axis=0)
    return call(memory, states, text[None], method="match_logit").T

  table = np.asarray(score(batch.visual, batch.text))
  own = np.arange(B)
  want = [table[own, own], table[texts, own], table[own, visuals]]
  np.testing.assert_allclose(
    rows["logits"], np.stack(want, axis=1), rtol=1e-4, atol=1e-5
  )
  loss, metrics = task.loss(params, rows, batch)
  z = np.array([1, -1, -1])
  nats = np.log1p(np.exp(-z * np.stack(want, axis=1)))
  np.testing.assert_allclose(loss, nats.mean(), rtol=1e-4)
  right = (z * np.stack(want, axis=1) > 0).mean()
  np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-5)


def test_visuals_are_drawn_as_texts_are_by_fast_s_scores():
  cfg, _, _, frozen, batch = setting()
  ids = np.array([0, 1, 2, 3, 4, 5, 0, 7], np.int32)  # 0 and 6: one visual
  said = np.array([0, 1, 2, 3, 1, 5, 6, 7], np.int32)  # 1 and 4: one caption
  mask = np.arange(B) != 5
  batch = batch._replace(visual_id=ids, text_id=said, mask=mask)
  batch = jax.tree.map(jnp.asarray, batch)
  keys = jax.random.split(jax.random.key(0), 4000)
  draw = functools.partial(
    tasks._draw_negatives, cfg, synthetic.VOCABULARY, frozen["fast"], batch
  )
  texts, visuals, found = quick(lambda k: jax.lax.map(draw, k))(keys)
  assert np.asarray(found).all()
  model = build.fast_model(cfg, synthetic.VOCABULARY)
  out = quick(functools.partial(build.apply, model))(
    frozen["fast"], build.pixels(cfg, batch.visual), batch.text
  )
  logits = out["scale"] * np.asarray(out["visual"]) @ np.asarray(out["text"]).T
  other = np.array(losses.comparable(jnp.asarray(ids), jnp.asarray(said)))
  other &= ~np.eye(B, dtype=bool) & mask[None]
  # Of a row of `logits` texts are drawn, of a column visuals.
  for chosen, scores in ((texts, logits), (visuals, logits.T)):
    share = np.exp(scores) * other
    share /= share.sum(axis=1, keepdims=True)
    seen = np.stack(
      [np.bincount(np.asarray(chosen)[:, b], minlength=B) for b in range(B)]
    )
    assert not seen[~other].any()
    np.testing.assert_allclose(seen / len(keys), share, atol=0.04)
  assert (np.asarray(texts) != np.asarray(visuals)).mean() > 0.3


def test_a_pair_without_another_has_no_negatives():
  _, task, params, frozen, batch = setting()
  batch = batch._replace(mask=jnp.arange(B) == 2)
  rows = quick(task.encode)(params, frozen, batch, jax.random.key(0))
  loss, _ = task.loss(params, rows, batch)
  assert np.asarray(rows["is_pair"])[2].tolist() == [1, 0, 0]
  own = np.asarray(rows["logits"])[2, 0]
  np.testing.assert_allclose(loss, np.log1p(np.exp(-own)), rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_negatives_are_drawn_in_parts_and_on_a_mesh(parts):
  """Of a part; the gradient reaches the drawn visual through its memory."""
  _, task, params, frozen, batch = setting()
  on = sharding.mesh(config.Mesh(4), jax.devices()[:4])
  batch = jax.tree.map(lambda x: sharding.spread(x, sharding.batch(on)), batch)
  everywhere = sharding.replicated(on)
  params, frozen = jax.device_put((params, frozen), everywhere)
  run = jax.jit(gradients.value_and_grad(task, parts), compiler_options=QUICK)
  (loss, metrics), grads = run(params, frozen, batch, jax.random.key(0))
  assert 0.1 < loss < 5
  assert 0 <= metrics["accuracy"] <= 1
  slopes = [np.abs(x).max() for x in jax.tree.leaves(grads["slow"]["encoder"])]
  assert min(slopes) > 0
