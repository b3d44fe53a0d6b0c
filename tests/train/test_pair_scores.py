"""Scores of a sample in blocks: those of all pairs at once, in less memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fs_jax import config
from fs_jax.machine import sharding
from fs_jax.models import build
from fs_jax.train import pair_scores, tasks
from tests.support import synthetic

SLOW = synthetic.slow(levels=1)
STAGES = {
  "fast": ("fast", {}),
  "distill": ("distill", {}),
  "slow": ("slow", {"slow": SLOW}),
  "matching": (
    "slow",
    {
      "slow": synthetic.slow(levels=1, loss="matching"),
      "init": config.Init(teacher="fast"),
    },
  ),
}


PARTS = {"batch_size": 64, "accumulate": 4}


def mesh(*sizes):
  return sharding.mesh(config.Mesh(*sizes), jax.devices()[: math.prod(sizes)])


@functools.cache
def setting(kind, **train):
  """A config with random parameters."""
  stage, fields = STAGES[kind]
  cfg = synthetic.cfg(stage, train=train, **fields)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    tasks.make(cfg, synthetic.VOCABULARY).init, jax.random.key(0)
  )
  draw = lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32)
  return cfg, jax.tree.map(draw, shapes)


def at_once(cfg, params, visual, text):
  """All pairs: [texts, visuals]."""
  text, seen = jnp.asarray(text), build.pixels(cfg, visual)
  if cfg.stage != "slow":
    model = build.fast_model(cfg, synthetic.VOCABULARY)
    out = build.apply(model, params["fast"], seen, text)
    return out["text"] @ out["visual"].T
  model = build.slow_model(cfg, synthetic.VOCABULARY)
  call = functools.partial(build.apply, model, params["slow"])
  memory = call(seen, method="encode_visual")
  states = call(text, method="read")[None].repeat(len(visual), axis=0)
  return call(memory, states, text[None], method="score").T


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize(
  ("sizes", "size", "accumulate"),
  [
    ((1, 1, 1), 13, 2),
    ((4, 2, 1), 13, 1),
    ((2, 1, 2), 8, 2),
    ((4, 2, 1), 3, 1),
  ],
)
def test_blocks_score_as_all_pairs_at_once(kind, sizes, size, accumulate):
  cfg, params = setting(kind, accumulate=accumulate)
  made = pair_scores.program(cfg, synthetic.VOCABULARY, mesh(*sizes), size)
  batch = synthetic.batch(2, rows=size)
  for _ in range(2):
    got = pair_scores.scores(made, params, batch.visual, batch.text)
  assert made.score._cache_size() == 1  # of all blocks, and of all calls
  want = jax.jit(functools.partial(at_once, cfg))(
    params, batch.visual, batch.text
  )
  assert got.shape == (size, size)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  assert np.asarray(want).std() > 1e-3


@pytest.mark.parametrize(
  ("kind", "train", "captions", "sizes", "size", "blocks"),
  [  # (visual blocks, rows), (text blocks, texts)
    ("slow", {"batch_size": 8}, 1, (1, 1, 1), 64, ((8, 8), (64, 1))),
    ("slow", {"batch_size": 8}, 2, (1, 1, 1), 64, ((8, 8), (32, 2))),
    ("slow", {"batch_size": 64}, 1, (4, 2, 1), 13, ((1, 16), (4, 4))),
    ("slow", PARTS, 2, (4, 2, 1), 64, ((4, 16), (32, 2))),
    ("slow", {"batch_size": 999}, 9, (1, 1, 1), 5, ((1, 5), (1, 5))),
    ("fast", {"batch_size": 8}, 2, (2, 2, 1), 64, ((8, 8), (4, 16))),
    ("fast", {"batch_size": 512}, 2, (4, 2, 1), 250, ((1, 256), (1, 256))),
  ],
)
def test_a_block_is_no_more_than_a_step_holds(
  kind, train, captions, sizes, size, blocks
):
  stage, fields = STAGES[kind]
  data = {"captions_per_visual": captions}
  cfg = synthetic.cfg(stage, train=train, data=data, **fields)
  on = mesh(*sizes)
  made = pair_scores.program(cfg, synthetic.VOCABULARY, on, size)
  assert (made.visual.shape[:2], made.text.shape[:2]) == blocks
  rows, texts = blocks[0][1], blocks[1][1]
  most = cfg.train.batch_size // cfg.train.accumulate
  assert rows <= most and rows % (sizes[0] * sizes[1]) == 0
  assert (rows if kind == "slow" else 1) * texts <= most * captions
  # A device holds its share of the rows.
  held = made.visual.sharding.shard_shape(made.visual.shape)
  assert held[1] == rows // (sizes[0] * sizes[1])


def test_memory_does_not_grow_with_the_pairs():
  cfg, _ = setting("slow")
  temporary = []
  for size in (16, 64):
    of = pair_scores.program(cfg, synthetic.VOCABULARY, mesh(1, 1, 1), size)
    run = of.score.lower(of.params, of.visual, of.text).compile()
    temporary.append(run.memory_analysis().temp_size_in_bytes)
  pairs = (64**2 - 16**2) * 4
  assert temporary[1] < temporary[0] + 3 * pairs  # the scores themselves


def test_the_sample_is_the_config_s():
  cfg = synthetic.cfg("slow", train={"eval_sample": 100})
  assert pair_scores.sample_size(cfg) == 25
  assert pair_scores.sample_size(synthetic.cfg("fast")) == 256
  made = pair_scores.program(cfg, synthetic.VOCABULARY, mesh(1, 1, 1))
  assert made.size == 25


def test_a_batch_that_does_not_split_is_refused():
  cfg = synthetic.cfg("slow", train={"batch_size": 12})
  with pytest.raises(ValueError, match=r"train.batch_size: must be divisible"):
    pair_scores.program(cfg, synthetic.VOCABULARY, mesh(8, 1, 1))
