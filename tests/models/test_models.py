"""Both models: what a score may depend on, and layers against slow ones."""

import dataclasses
import functools
import types as builtin_types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fs_jax import config, types
from fs_jax.models import (
  attention,
  blocks,
  build,
  fast,
  layers,
  slow,
  vision,
)
from fs_jax.train import gradients, tasks
from tests.support import lowered, synthetic

LONG = 10  # rows of the position tables; texts have synthetic.LENGTH
TEXTS = 4  # of each visual
SINGLE = jnp.dtype("float32")
# Half the time to compile; what runs is small.
QUICK = {"xla_backend_optimization_level": 0}


def filled(shapes, seed=0):
  """Parameters of no special value: a bias that starts at 0 hides mistakes."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes
  )


def pixels(frames=1, seed=0, rows=2):
  shape = (rows, frames, synthetic.IMAGE, synthetic.IMAGE, 3)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def texts(seed=0, visuals=2, each=TEXTS):
  made = synthetic.text(np.random.default_rng(seed), visuals * each)
  return made.reshape(visuals, each, -1)


def longer(text):
  """The same captions with more padding behind."""
  more = LONG - text.shape[-1]
  return np.pad(text, [(0, 0)] * (text.ndim - 1) + [(0, more)])


@functools.cache
def slow_of(cfg=None, dtype="float32", frames=1):
  cfg = synthetic.slow() if cfg is None else cfg
  model = slow.Slow(cfg, synthetic.VOCABULARY, LONG, jnp.dtype(dtype))
  image = jnp.asarray(pixels(frames, rows=1))
  text = jnp.asarray(texts()[0, :1])
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text)
  return model, filled(shapes["params"])


@functools.cache
def fast_of(cfg, dtype="float32", frames=1):
  model = fast.Fast(cfg, synthetic.VOCABULARY, LONG, jnp.dtype(dtype))
  image = jnp.asarray(pixels(frames, rows=1))
  text = jnp.asarray(texts()[0, :1])
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text)
  return model, filled(shapes["params"])


quick = functools.partial(jax.jit, compiler_options=QUICK)


@functools.cache
def compiled(model, method, train=False):
  """f(params, *args), a key last where there is dropout."""

  @quick
  def run(params, *args):
    if not train:
      return build.apply(model, params, *args, method=method)
    *args, key = args
    rngs = {"dropout": key}
    return build.apply(model, params, *args, True, method=method, rngs=rngs)

  return run


def _states(model, text, train=False):
  b, s, length = text.shape
  states = model.read(text.reshape(b * s, length), train)
  return states.reshape(b, s, *states.shape[1:])


def _words(model, memory, text, train=False):
  states = _states(model, text, train)
  return model.word_log_likelihood(memory, states, text, train)


def _logits(model, memory, text):
  """Scores of every next word: [B,S,2,I,V]."""
  seen = model.look(memory, _states(model, text))
  readers = [model.readers[k % len(model.readers)] for k in range(2)]
  parts = [r.logits(seen[:, :, k]) for k, r in enumerate(readers)]
  return jnp.stack(parts, axis=2)


def encode(model, params, image):
  return compiled(model, "encode_visual")(params, image)


def words(model, params, memory, text):
  """log p of every target: [B,S,2,I]."""
  return np.asarray(compiled(model, _words)(params, memory, text))


@pytest.fixture(scope="module")
def scene():
  """Model, parameters, memory of two pictures, four captions of each."""
  model, params = slow_of()
  return model, params, encode(model, params, pixels()), texts()


def close(a, b, atol=2e-5):
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


def differs(a, b):
  return float(np.abs(np.asarray(a) - np.asarray(b)).max()) > 1e-3


# Slow: what a score depends on.


def test_log_likelihood_is_a_distribution_over_words(scene):
  """log p of a target is its logit's log-softmax, 0 at padding; h sums it."""
  model, params, memory, text = scene
  got = words(model, params, memory, text)
  logits = np.asarray(compiled(model, _logits)(params, memory, text), float)
  log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  for b, s in np.ndindex(text.shape[:2]):
    valid = int((text[b, s] != 0).sum())
    forward = list(text[b, s, :valid])
    backward = [2, *forward[-2:0:-1], 3]
    for d, read in enumerate([forward, backward]):
      want = np.zeros(text.shape[-1] - 1)
      for i in range(valid - 1):
        want[i] = log_p[b, s, d, i, read[i + 1]]
      close(got[b, s, d], want)
  h, n = compiled(model, "log_likelihood")(params, memory, text)
  close(h, got.sum(axis=(2, 3)), atol=1e-4)
  np.testing.assert_array_equal(n, 2 * ((text != 0).sum(axis=-1) - 1))


def test_padding_changes_no_score(scene):
  model, params, memory, text = scene
  short = words(model, params, memory, text)
  long = words(model, params, memory, longer(text))
  close(long[..., : short.shape[-1]], short)
  assert not long[..., short.shape[-1] :].any()


def test_a_token_changes_only_what_is_read_after_it(scene):
  model, params, memory, _ = scene
  count = synthetic.LENGTH - 2  # words
  rows = np.array([[2, *range(4, 4 + count), 3]] * (count + 1), np.int32)
  for t in range(1, count + 1):  # row t has another word at t
    rows[t, t] = synthetic.VOCABULARY - 1
  rows = np.stack([rows, rows])  # for both pictures
  logits = np.asarray(compiled(model, _logits)(params, memory, rows))
  for t in range(1, count + 1):
    for d, at in enumerate([t, count + 1 - t]):
      a, b = logits[:, 0, d], logits[:, t, d]
      close(a[:, :at], b[:, :at])
      for i in range(at, a.shape[1]):
        assert differs(a[:, i], b[:, i])


def test_backward_is_forward_of_the_reversed_caption(scene):
  """Up to the direction's embedding, here exchanged."""
  model, params, memory, text = scene
  turned = text.copy()
  for row in turned.reshape(-1, turned.shape[-1]):
    last = int((row != 0).sum()) - 1
    row[1:last] = row[1:last][::-1].copy()
  reader = params["readers_0"]
  other = {"readers_0": reader | {"direction": reader["direction"][::-1]}}
  got = words(model, params, memory, text)
  want = words(model, params | other, memory, turned)
  close(got[:, :, ::-1], want)
  assert differs(got[:, :, 1], words(model, params, memory, turned)[:, :, 0])


def test_blank_hides_the_picture(scene):
  model, params, memory, text = scene
  text = np.stack([text[0], text[0]])
  seen = words(model, params, memory, text)
  assert differs(seen[0], seen[1])
  blank = compiled(model, "blank")
  half = blank(params, memory, np.array([False, True]))
  for level in half.levels:  # one token is left, not zeros to look at
    assert level.mask.sum(axis=1).tolist() == [level.mask.shape[1], 1]
  got = words(model, params, half, text)
  close(got[0], seen[0])
  assert differs(got[1], seen[1])
  both = words(
    model, params, blank(params, memory, np.array([True, True])), text
  )
  close(both[0], both[1])
  close(both[1], got[1])
  # What is seen instead is learned.
  other = params | {"null": params["null"] + 1}
  hidden = blank(other, memory, np.array([True, True]))
  assert differs(words(model, params, hidden, text), both)


def test_tokens_have_no_order_and_masked_ones_no_say(scene):
  model, params, memory, text = scene
  rng = np.random.default_rng(0)

  def masked(filler):
    levels = []
    for latent, mask in memory.levels:
      keep = np.asarray(mask) & (np.arange(mask.shape[1]) % 3 > 0)[None]
      latent = np.where(keep[..., None], latent, np.float32(filler))
      levels.append(types.Level(latent, keep))
    return types.Memory(tuple(levels))

  part = masked(0.0)
  want = words(model, params, part, text)
  assert differs(want, words(model, params, memory, text))
  close(words(model, params, masked(7.0), text), want)
  levels = []
  for latent, mask in part.levels:
    order = rng.permutation(mask.shape[1])
    levels.append(types.Level(latent[:, order], mask[:, order]))
  moved = types.Memory(tuple(levels))
  close(words(model, params, moved, text), want)


def test_every_level_is_looked_at(scene):
  model, params, memory, text = scene
  want = words(model, params, memory, text)
  assert len(memory.levels) == 2
  for k, level in enumerate(memory.levels):
    levels = list(memory.levels)
    levels[k] = level._replace(latent=level.latent + 1)
    other = words(model, params, types.Memory(tuple(levels)), text)
    assert differs(other, want)


def test_many_texts_at_once_are_each_alone(scene):
  model, params, memory, text = scene
  together = words(model, params, memory, text)
  for s in range(text.shape[1]):
    one = words(model, params, memory, text[:, s : s + 1])
    close(one, together[:, s : s + 1])


def test_matching_averages_over_words_only():
  cfg = synthetic.slow(loss="matching", levels=1)
  model, params = slow_of(cfg)
  memory, text = encode(model, params, pixels()), texts()

  def logit(model, memory, text):
    return model.score(memory, _states(model, text), text)

  run = compiled(model, logit)
  got = run(params, memory, text)
  assert got.shape == text.shape[:2]
  close(run(params, memory, longer(text)), got)
  other = encode(model, params, pixels(seed=1))
  assert differs(run(params, other, text), got)


# Slow: options.


def test_separate_directions_are_two_decoders():
  """Of the same parameters they are one; each reads its own direction."""
  one, params = slow_of(synthetic.slow(levels=1))
  two, _ = slow_of(synthetic.slow(levels=1, separate_directions=True))
  memory, text = encode(one, params, pixels()), texts()
  assert [x.mask.shape for x in memory.levels] == [(2, 4)]
  want = words(one, params, memory, text)
  twin = params | {"readers_1": params["readers_0"]}
  close(words(two, twin, memory, text), want)
  other = params | {"readers_1": filled(params["readers_0"], seed=1)}
  got = words(two, other, memory, text)
  close(got[:, :, 0], want[:, :, 0])
  swapped = params | {"readers_0": other["readers_1"]}
  close(got[:, :, 1], words(one, swapped, memory, text)[:, :, 1])
  assert differs(got[:, :, 1], want[:, :, 1])
  # The only level is seen.
  assert differs(
    words(one, params, encode(one, params, pixels(seed=1)), text), want
  )


def test_without_text_layers_words_still_see_words_before():
  model, params = slow_of(synthetic.slow(levels=1, text_layers=0))
  assert "text" not in params["readers_0"]
  memory, text = encode(model, params, pixels()), texts()
  short = words(model, params, memory, text)
  close(
    words(model, params, memory, longer(text))[..., : short.shape[-1]], short
  )


@pytest.mark.parametrize("pool", ["map", "class"])
def test_finer_levels_keep_every_other_frame(pool):
  cfg = synthetic.slow(vision=synthetic.vision(pool), finer_frames=2)
  model, params = slow_of(cfg, frames=3)
  image = pixels(frames=3)
  coarse, fine = encode(model, params, image).levels
  assert coarse.latent.shape == (2, 3 * 4, 8)
  assert fine.latent.shape == (2, 2 * 16, 8)
  assert cfg.grids(image.shape[2], 3) == ((3, 2, 2), (2, 4, 4))
  assert coarse.mask.all() and fine.mask.all()
  # Of a class token nothing is stored.
  tower = vision.Vision(cfg.vision, SINGLE)
  tokens = compiled(tower, None)(params["encoder"]["vision"], image)
  dense = params["encoder"]["memory0"]
  want = np.asarray(tokens)[:, :, -4:] @ dense["kernel"] + dense["bias"]
  close(coarse.latent, want.reshape(2, 3 * 4, 8))
  for frame, at in [(0, 0), (1, None), (2, 1)]:
    changed = image.copy()
    changed[:, frame] += 1
    other, finer = encode(model, params, changed).levels
    moved = np.abs(other.latent - coarse.latent).reshape(2, 3, -1).max((0, 2))
    assert [bool(x > 1e-3) for x in moved] == [i == frame for i in range(3)]
    moved = np.abs(finer.latent - fine.latent).reshape(2, 2, -1).max((0, 2))
    assert [bool(x > 1e-3) for x in moved] == [i == at for i in range(2)]


def test_bfloat16_scores_are_float32():
  model, params = slow_of(synthetic.slow(levels=1), "bfloat16")
  exact, _ = slow_of(synthetic.slow(levels=1))
  memory, text = encode(model, params, pixels()), texts()
  assert memory.levels[0].latent.dtype == jnp.float32
  got = words(model, params, memory, text)
  assert got.dtype == np.float32
  want = words(exact, params, encode(exact, params, pixels()), text)
  error = np.abs(got - want).max()
  assert 1e-4 < error < 0.1  # computed otherwise, to much the same


@pytest.mark.parametrize("vocabulary", [12, 5000])
def test_bfloat16_words_are_as_exact_as_sums_in_float32(
  monkeypatch, vocabulary
):
  """Nats a word, of scores up to 60 and parameters that bfloat16 holds.

  Scores rounded to bfloat16 are off by 0.06 a word on average.
  """
  cfg, rng = synthetic.slow(levels=1), np.random.default_rng(0)
  model = slow.Slow(cfg, vocabulary, LONG, jnp.dtype("bfloat16"))
  states = jnp.asarray(rng.normal(0, 4, (2, 3, 2, 6, 16)), jnp.bfloat16)
  table = jnp.asarray(rng.normal(0, 1, (vocabulary, 16)), jnp.bfloat16)
  bias = jnp.asarray(rng.normal(0, 1, vocabulary), jnp.float32)
  sample = jnp.asarray(pixels(rows=1)), jnp.asarray(texts()[0, :1])
  shapes = jax.eval_shape(model.init, jax.random.key(0), *sample)
  params = filled(shapes["params"])
  params["readers_0"] |= {
    "tokens": {"embedding": table.astype(jnp.float32)},
    "out_bias": bias,
  }
  text = jnp.tile(jnp.array([2, 4, 9, 7, 5, 11, 3]), (2, 3, 1))
  nothing = types.Memory(())
  monkeypatch.setattr(slow.Slow, "look", lambda self, memory, x, train: x)
  run = lambda p, x: model.apply(
    {"params": p}, nothing, x, text, method="word_log_likelihood"
  )
  got = np.asarray(quick(run)(params, states))
  exact = lambda x: np.asarray(x.astype(jnp.float32), np.float64)
  logits = exact(states) @ exact(table).T + np.asarray(bias, np.float64)
  assert 40 < np.abs(logits).max() < 120
  top = logits.max(axis=-1, keepdims=True)
  log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
  _, targets = slow.directions(jnp.asarray(text))
  want = np.take_along_axis(log_p, np.asarray(targets)[..., None], -1)[..., 0]
  error = np.abs(got - want)
  assert error.mean() < 1e-5, error.mean()
  assert error.max() < 1e-4


@pytest.mark.parametrize("long", [False, True])
def test_bfloat16_attention_weighs_as_sums_in_float32_do(monkeypatch, long):
  """Scores of 30 and more, rounded to bfloat16, change weights by a tenth."""
  monkeypatch.setattr(attention, "SHORT", 0 if long else 64)
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(0, 4, shape), jnp.bfloat16)
  q, k = draw(2, 5, 2, 16), draw(2, 16, 2, 16)
  each = np.eye(16, dtype=np.float32)[None, :, None]  # values: who is mixed in
  v = jnp.asarray(np.broadcast_to(each, (2, 16, 2, 16)))
  fresh = lambda *args: attention.attend(*args)
  got = quick(fresh)(q, k, v, None)
  whole = lambda x: np.asarray(x.astype(jnp.float32), np.float64)
  scores = np.einsum("blhd,bnhd->blhn", whole(q), whole(k)) / 4
  assert np.abs(scores).max() > 30
  weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
  close(got, weights / weights.sum(axis=-1, keepdims=True), atol=1e-4)


def test_bfloat16_latents_are_weighed_as_sums_in_float32_do():
  rng = np.random.default_rng(0)
  draw = lambda s, *shape: jnp.asarray(rng.normal(0, s, shape), jnp.bfloat16)
  x, latent = draw(1, 2, 3, 4), draw(9, 2, 7, 16)
  module = attention.LatentAttention(2, jnp.dtype("bfloat16"))
  # Queries that are numbers of x, one each: no product before the scores.
  kernel = np.eye(4, 32, dtype=np.float32).reshape(4, 2, 16)
  params = {
    "query": {"kernel": kernel * 16, "bias": np.zeros((2, 16), np.float32)},
    "out": {
      "kernel": np.zeros((2, 16, 4), np.float32),
      "bias": np.zeros(4, np.float32),
    },
  }
  run = quick(functools.partial(module.apply, mutable="intermediates"))
  _, kept = run({"params": params}, x, latent, np.ones((2, 7), bool))
  whole = lambda a: np.asarray(a.astype(jnp.float32), np.float64)
  scores = np.zeros((2, 3, 2, 7))
  scores[:, :, 0] = np.einsum("blm,bnm->bln", whole(x), whole(latent)[..., :4])
  scores *= 16 / 16**0.5
  assert np.abs(scores).max() > 60
  weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
  weights /= weights.sum(axis=-1, keepdims=True)
  close(kept["intermediates"]["attention"][0], weights, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("stage", "fields"),
  [
    ("fast", {"fast": {"vision": synthetic.vision("map", remat="dots")}}),
    (
      "fast",
      {"fast": {"vision": dataclasses.replace(synthetic.vision(), stem=8)}},
    ),
    ("slow", {}),
    ("slow", {"slow": synthetic.slow(separate_directions=True)}),
    (
      "slow",
      {
        "slow": synthetic.slow(loss="matching"),
        "init": config.Init(teacher="fast"),
      },
    ),
    ("distill", {}),
  ],
)
@pytest.mark.parametrize("short", [64, 2])
def test_products_of_bfloat16_are_float32(monkeypatch, stage, fields, short):
  """In a whole step; none mixes both, which is slow.

  Its gradients of attention may be bfloat16: no softmax reads them.
  """
  monkeypatch.setattr(attention, "SHORT", short)
  cfg = synthetic.cfg(stage, compute="bfloat16", **fields)
  task = tasks.make(cfg, synthetic.VOCABULARY)
  params = jax.eval_shape(task.init, jax.random.key(0))
  frozen = tasks.frozen_shapes(cfg, synthetic.VOCABULARY)
  batch = tasks.batch_shapes(cfg)
  key = jax.random.key(0)

  def forward(params, frozen, batch):
    return task.loss(params, task.encode(params, frozen, batch, key), batch)

  def gradient(*args):
    return gradients.value_and_grad(task)(*args, key)

  for of in (forward, gradient):
    made = jax.make_jaxpr(of)(params, frozen, batch)
    half = 0
    for e in lowered.inner(made.jaxpr):
      if e.primitive.name != "dot_general":
        continue
      (a, b), out = (x.aval.dtype for x in e.invars), e.outvars[0].aval.dtype
      batched = e.params["dimension_numbers"][1][0]
      assert a == b, e
      assert out == jnp.float32 or (of is gradient and batched), e
      half += a == jnp.bfloat16
    assert half > 10


def test_dense_layers_are_linens():
  """Of the same names and first values; in float32 to the last bit."""
  x = jax.random.normal(jax.random.key(1), (2, 3, 4, 6))
  for ours, theirs in (
    (layers.Dense(5, SINGLE), nn.Dense(5)),
    (layers.Dense((2, 3), SINGLE), nn.DenseGeneral((2, 3))),
    (layers.Dense(5, SINGLE, axes=2), nn.DenseGeneral(5, (-2, -1))),
  ):
    params, want = (m.init(jax.random.key(0), x) for m in (ours, theirs))
    jax.tree.map(np.testing.assert_array_equal, params, want)
    params = jax.tree.map(jnp.asarray, filled(params))
    np.testing.assert_array_equal(
      jax.jit(ours.apply)(params, x), jax.jit(theirs.apply)(params, x)
    )
    half = dataclasses.replace(ours, dtype=jnp.dtype("bfloat16"))
    assert half.apply(params, x).dtype == jnp.bfloat16
    half = dataclasses.replace(half, out=SINGLE)
    assert half.apply(params, x).dtype == jnp.float32


def test_gradients_in_bfloat16_are_those_of_float32_rounded():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(3, 5, 6)), "float32")
  slopes = {}
  for dtype in ("float32", "bfloat16"):
    module = layers.Dense((2, 4), jnp.dtype(dtype))
    params = filled(jax.eval_shape(module.init, jax.random.key(0), x))
    loss = lambda p, x, m=module: jnp.sin(m.apply(p, x).astype("float32")).sum()
    slopes[dtype] = quick(jax.grad(loss, (0, 1)))(params, x)
  largest = max(np.abs(s).max() for s in jax.tree.leaves(slopes["float32"]))
  assert largest > 1
  for a, b in zip(*map(jax.tree.leaves, slopes.values()), strict=True):
    assert a.dtype == b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02 * largest)


def test_slow_drops_out_in_training_only():
  stack = synthetic.stack(2)
  cfg = synthetic.slow(
    levels=1, decoder=dataclasses.replace(stack, dropout=0.5)
  )
  model, params = slow_of(cfg)
  plain, _ = slow_of(synthetic.slow(levels=1))
  memory, text = encode(model, params, pixels()), texts()
  want = words(plain, params, memory, text)
  close(words(model, params, memory, text), want)
  run = compiled(model, _words, train=True)
  a, b = (run(params, memory, text, jax.random.key(i)) for i in (0, 1))
  assert differs(a, b) and differs(a, want)


# Fast.


def fast_cfg(pool="map", dropout=0.0, **fields):
  stack = synthetic.stack(dropout=dropout)
  return config.Fast(
    config.Vision(stack, 8, pool), config.Text(stack, pool), embed=8, **fields
  )


@pytest.mark.parametrize("pool", ["map", "mean", "class"])
def test_fast_vectors_are_unit_and_blind_to_padding(pool):
  model, params = fast_of(fast_cfg(pool), frames=2)
  text = texts()[0]
  g = compiled(model, "text")(params, text)
  f = compiled(model, "visual")(params, pixels(frames=2))
  for x in (f, g):
    assert x.dtype == jnp.float32
    close(np.linalg.norm(x, axis=1), 1)
    assert differs(x[0], x[1])
  close(compiled(model, "text")(params, longer(text)), g)
  for frame in range(2):
    image = pixels(frames=2)
    image[:, frame] = np.flip(image[:, frame], axis=1)
    assert differs(compiled(model, "visual")(params, image), f)


def test_fast_in_bfloat16_gives_float32_unit_vectors():
  model, params = fast_of(fast_cfg(loss="sigmoid"), "bfloat16")
  exact, _ = fast_of(fast_cfg(loss="sigmoid"))
  args = params, pixels(), texts()[0]
  out, want = (compiled(m, None)(*args) for m in (model, exact))
  assert set(out) == {"visual", "text", "scale", "bias"}
  assert all(x.dtype == jnp.float32 for x in out.values())
  for side in ("visual", "text"):
    close(np.linalg.norm(out[side], axis=1), 1)
    assert 1e-5 < np.abs(out[side] - want[side]).max() < 0.2


def test_fast_drops_out_in_training_only():
  model, params = fast_of(fast_cfg(dropout=0.5, loss="sigmoid"))
  plain, _ = fast_of(fast_cfg(loss="sigmoid"))
  args = params, pixels(), texts()[0]
  got, want = (compiled(m, None)(*args) for m in (model, plain))
  run = compiled(model, None, train=True)
  a, b = (run(*args, jax.random.key(i)) for i in (0, 1))
  for side in ("visual", "text"):
    close(got[side], want[side])
    assert differs(a[side], b[side])


@pytest.mark.parametrize(
  ("fields", "scale"),
  [
    ({}, 14),
    ({"loss": "sigmoid"}, 10),
    ({"loss": "sigmoid", "scale": 20.0}, 20),
    ({"scale": 5.0}, 5),
  ],
)
def test_scale_starts_where_its_loss_does(fields, scale):
  model, _ = fast_of(fast_cfg(**fields))
  variables = model.init(jax.random.key(0), method="scale")
  close(jnp.exp(variables["params"]["log_scale"]), scale, atol=1e-4)
  if fields.get("loss") == "sigmoid":
    assert variables["params"]["bias"] == -10


def test_scale_starts_as_configured_and_stays_below_100():
  model, params = fast_of(fast_cfg())
  run = compiled(model, "scale")
  for log_scale, want in [(np.log(14), 14), (5.0, 100)]:
    value = np.float32(log_scale)
    close(run(params | {"log_scale": value}), want, atol=1e-3)


def test_a_zero_vector_has_a_finite_gradient():
  grad = jax.grad(lambda x: fast.unit(x).sum())(jnp.zeros((2, 3)))
  assert np.isfinite(grad).all()


# Layers.


@pytest.mark.parametrize("d_mem", [5, 8])
def test_latent_attention_is_attention_with_explicit_keys(d_mem):
  """Keys m W_k, values m W_v of each head; both maps absorbed as documented."""
  b, words_, n, d, heads = 2, 3, 4, 6, 2
  each = d // heads
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(0, 0.5, shape)
  x, m = draw(b, words_, d), draw(b, n, d_mem)
  mask = np.array([[True, True, False, True], [False, True, True, True]])
  w_q, b_q = draw(d, heads, each), draw(heads, each)
  w_k, b_k = draw(d_mem, heads, each), draw(heads, each)
  w_v, b_v = draw(d_mem, heads, each), draw(heads, each)
  w_o, b_o = draw(heads, each, d), draw(d)

  want = np.tile(b_o, (b, words_, 1))
  for i, l, h in np.ndindex(b, words_, heads):
    query = x[i, l] @ w_q[:, h] + b_q[h]
    keys, values = m[i] @ w_k[:, h] + b_k[h], m[i] @ w_v[:, h] + b_v[h]
    weight = np.exp(keys @ query / each**0.5) * mask[i]
    want[i, l] += weight @ values / weight.sum() @ w_o[h]

  # The module divides by the root of d_mem; a key's bias moves no softmax.
  rescale = (d_mem / each) ** 0.5
  params = {
    "query": {
      "kernel": rescale * np.einsum("dha,mha->dhm", w_q, w_k),
      "bias": rescale * np.einsum("ha,mha->hm", b_q, w_k),
    },
    "out": {
      "kernel": np.einsum("mha,hao->hmo", w_v, w_o),
      "bias": b_o + np.einsum("ha,hao->o", b_v, w_o),
    },
  }
  single = lambda tree: jax.tree.map(np.float32, tree)
  module = attention.LatentAttention(heads, SINGLE)
  got = quick(module.apply)({"params": single(params)}, *single((x, m)), mask)
  close(got, want)


def test_attention_of_a_long_row_is_that_of_a_short_one(monkeypatch):
  rng = np.random.default_rng(0)
  q, k, v = rng.normal(size=(3, 2, 5, 2, 4)).astype(np.float32)
  mask = np.tril(np.ones((5, 5), bool))[None, None]
  for where in (mask, None):
    short = quick(attention.attend)(q, k, v, where)
    want = np.zeros((2, 5, 2, 4))
    for b, l, h in np.ndindex(2, 5, 2):
      seen = slice(0, l + 1 if where is not None else 5)
      weight = np.exp(k[b, seen, h] @ q[b, l, h] / 2)
      want[b, l, h] = weight @ v[b, seen, h] / weight.sum()
    close(short, want)
    with monkeypatch.context() as patch:
      patch.setattr(attention, "SHORT", 0)
      fused = lambda *args: attention.attend(
        *args
      )  # not the one compiled above
      close(quick(fused)(q, k, v, where), want)


@pytest.mark.parametrize(
  ("kind", "dtype", "width", "masked", "fused"),
  [
    ("NVIDIA H200", jnp.bfloat16, 64, False, True),
    ("NVIDIA H200", jnp.float32, 64, False, False),
    ("NVIDIA H200", jnp.bfloat16, 20, False, False),
    ("NVIDIA H200", jnp.bfloat16, 64, True, False),
    ("Instinct", jnp.bfloat16, 64, False, False),
    ("", jnp.bfloat16, 64, False, False),
  ],
)
def test_a_kernel_is_asked_for_what_it_takes(
  monkeypatch, kind, dtype, width, masked, fused
):
  """Which kernel runs; what it computes is for a machine that has one."""
  asked = []
  device = builtin_types.SimpleNamespace(device_kind=kind)
  backend = "gpu" if kind else "cpu"
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  kernel = lambda q, k, v, implementation: asked.append(implementation) or q
  monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
  x = jnp.zeros((1, attention.SHORT + 1, 2, width), dtype)
  mask = jnp.ones((1, 1, 1, attention.SHORT + 1), bool) if masked else None
  attention.attend(x, x, x, mask)
  assert asked == ["cudnn"] * fused


@pytest.mark.parametrize("kind", ["map", "mean", "class"])
def test_pools(kind):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 5, 4)), "float32")
  mask = jnp.asarray([[True] * 3 + [False] * 2, [True] * 5])
  pool = blocks.Pool(kind, 2, 6, SINGLE)
  shapes = jax.eval_shape(pool.init, jax.random.key(0), x)
  params = filled(shapes)
  run = quick(pool.apply)
  got = run(params, x, mask)
  close(got, run(params, np.where(mask[..., None], x, np.float32(9)), mask))
  close(got[1], run(params, x[1:])[0])
  close(got[0], run(params, x[:1, :3])[0])
  if kind == "mean":
    close(got[0], np.asarray(x)[0, :3].mean(axis=0))
  if kind == "class":
    close(got, x[:, 0])
  if kind == "map":
    close(got[1], run(params, x[1:, ::-1])[0])
    assert differs(got[1], x[1].mean(axis=0))


def test_stem_is_a_convolution():
  patch, hidden, width = 2, 5, 4
  rng = np.random.default_rng(0)
  frames = jnp.asarray(rng.normal(size=(2, 6, 8, 3)), "float32")
  stem = vision.Stem(patch, hidden, width, SINGLE)
  shapes = jax.eval_shape(stem.init, jax.random.key(0), frames)
  params = filled(shapes)["params"]
  convolve = functools.partial(
    jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  kernel = params["conv"]["kernel"]
  assert kernel.shape == (2 * patch, 2 * patch, 3, hidden)
  seen = convolve(frames, kernel, (patch, patch), [(1, 1)] * 2)
  seen += params["conv"]["bias"][None, None, None]
  out = params["out"]
  want = jax.nn.gelu(seen) @ out["kernel"] + out["bias"][None, None, None]
  close(quick(stem.apply)({"params": params}, frames), want)


@pytest.mark.parametrize("patch", [2, 3, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stem_by_patches_is_one_by_pixels(patch, dtype):
  """What other devices compute, in value and gradient."""
  rng = np.random.default_rng(0)
  frames = jnp.asarray(rng.normal(size=(2, 3 * patch, 2 * patch, 3)), "float32")
  shape = (2 * patch, 2 * patch, 3, 5)
  kernel = jnp.asarray(0.1 * rng.normal(size=shape), "float32")

  def found(of):
    def run(*x):
      out, back = jax.vjp(functools.partial(of, patch), *x)
      assert out.dtype == jnp.float32
      return out, *back(jnp.cos(out))

    return quick(run)(frames.astype(dtype), kernel.astype(dtype))

  ways = found(vision._by_patches), found(vision._by_pixels)
  for got, want in zip(*ways, strict=True):
    got, want = (x.astype(jnp.float32) for x in (got, want))
    close(got, want, atol=2e-5 if dtype == "float32" else 0.05)


def test_patches_are_a_convolution():
  patch, width = 4, 5
  rng = np.random.default_rng(0)
  frames = jnp.asarray(rng.normal(size=(2, 8, 12, 3)), "float32")
  kernel = rng.normal(size=(patch * patch * 3, width)).astype(np.float32)
  module = vision.PatchEmbed(patch, 0, width, SINGLE)
  conv = {"kernel": kernel, "bias": np.zeros(width, np.float32)}
  want = jax.lax.conv_general_dilated(
    frames,
    kernel.reshape(patch, patch, 3, width),
    (patch, patch),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  close(module.apply({"params": {"conv": conv}}, frames), want)


def test_depth_to_space_spreads_channels_over_a_square():
  x = np.random.default_rng(0).normal(size=(2, 3, 2, 8)).astype(np.float32)
  want = np.zeros((2, 6, 4, 2), np.float32)
  for f, i, j, dy, dx in np.ndindex(2, 3, 2, 2, 2):
    part = 2 * dy + dx
    want[f, 2 * i + dy, 2 * j + dx] = x[f, i, j, 2 * part : 2 * part + 2]
  np.testing.assert_array_equal(slow.depth_to_space(jnp.asarray(x)), want)


def test_directions_of_a_caption():
  text = jnp.asarray([[2, 4, 5, 6, 3, 0, 0], [2, 4, 3, 0, 0, 0, 0]])
  inputs, targets = slow.directions(text)
  want = [
    [[2, 4, 5, 6, 3, 0, 0], [2, 6, 5, 4, 3, 0, 0]],
    [[2, 4, 3, 0, 0, 0, 0], [2, 4, 3, 0, 0, 0, 0]],
  ]
  np.testing.assert_array_equal(inputs, np.array(want)[..., :-1])
  np.testing.assert_array_equal(targets, np.array(want)[..., 1:])


def test_embedding_by_products_is_a_lookup(monkeypatch):
  table = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
  ids = jnp.asarray([[0, 8, 3], [3, 3, 1]])
  module = layers.Embed(9, 4, SINGLE)
  run = lambda: module.apply({"params": {"embedding": table}}, ids)
  by_product = run()
  monkeypatch.setattr(layers, "ONE_HOT_VOCABULARY", 8)
  np.testing.assert_array_equal(run(), table[ids])
  close(by_product, table[ids])


@pytest.mark.parametrize("width", [8, 10, 16])
def test_first_positions_tell_every_place_apart(width):
  made = layers.sincos_2d(jax.random.key(0), (3, 5, width))
  assert made.shape == (3, 5, width) and made.dtype == jnp.float32
  assert float(jnp.abs(made).max()) <= 1
  flat = np.asarray(made).reshape(15, width)
  apart = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
  assert (apart + np.eye(15)).min() > 0.1


def test_normalise_is_the_mean_and_deviation_of_pixels_in_0_1():
  image = np.random.default_rng(0).integers(0, 256, (2, 1, 2, 2, 3), np.uint8)
  mean, std = (0.1, 0.5, 0.6), (0.2, 0.3, 0.4)
  want = (image / 255 - np.array(mean)) / np.array(std)
  close(vision.normalise(image, mean, std), want)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_changes_no_gradient(remat):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 3, 16)), "float32")

  def gradient(kind):
    cfg = dataclasses.replace(synthetic.stack(2), remat=kind)
    module = blocks.Stack(cfg, SINGLE)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    loss = lambda p: (module.apply(p, x) ** 2).mean()
    return quick(jax.grad(loss))(filled(shapes))

  jax.tree.map(close, gradient(remat), gradient("none"))
