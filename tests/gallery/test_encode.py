"""Galleries in batches: every item once, as it would be alone."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from fs_jax import types
from fs_jax.data import sources
from fs_jax.data import tokenizer as tokenizers
from fs_jax.gallery import encode
from fs_jax.models import build
from fs_jax.runs import stages
from fs_jax.train import tasks
from tests.support import synthetic

N = 11
MEMORIES = encode.encode_memories
WORDS = " ".join(map(str, range(synthetic.VOCABULARY - 4)))


def run_of(stage):
  cfg = synthetic.cfg(stage)
  tokenizer = tokenizers.train([WORDS], cfg.tokens)
  task = tasks.make(cfg, tokenizer.vocab_size)
  draw = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(draw.normal(0, 0.3, x.shape), jnp.float32),
    jax.eval_shape(task.init, jax.random.key(0)),
  )
  return stages.Run(epath.Path("nowhere"), cfg, tokenizer, params, 1)


@pytest.fixture(scope="module")
def fast():
  return run_of("fast")


@pytest.fixture(scope="module")
def slow():
  return run_of("slow")


def make_source(count=N):
  """Visuals of which some have no caption; counts who asks for which row."""
  pixels = synthetic.batch(3, rows=N).visual[:count]
  asked = []

  def visuals(rows):
    asked.extend(np.asarray(rows).tolist())
    return pixels[np.asarray(rows, int)]

  source = sources.Source(
    ids=tuple(f"v{i}" for i in range(count)),
    all_captions=tuple(("1 2",) * (i % 3) for i in range(count)),
    groups=np.full(count, -1, np.int32),
    visuals=visuals,
  )
  return source, asked


@pytest.mark.parametrize("batch_size", [1, 4, 11, 256])
def test_every_visual_has_one_vector_whatever_the_batch(fast, batch_size):
  source, asked = make_source()
  got = encode.encode_visuals(fast, source, batch_size=batch_size)
  assert sorted(asked) == list(range(N))  # padding asks for none
  assert got.shape == (N, 8)
  assert got.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-5)
  model = build.fast_model(fast.cfg, fast.tokenizer.vocab_size)
  seen = build.pixels(fast.cfg, source.visuals(np.arange(N)))
  want = model.apply({"params": fast.params["fast"]}, seen, method="visual")
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(np.diff(np.asarray(want), axis=0)).max(axis=1).min() > 1e-3


def test_memories_of_any_batch_are_those_of_all(slow):
  source, _ = make_source()
  parts = list(encode.encode_memories(slow, source, batch_size=4))
  assert [len(p.levels[0].mask) for p in parts] == [4, 4, 3]
  got = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  model = build.slow_model(slow.cfg, slow.tokenizer.vocab_size)
  seen = build.pixels(slow.cfg, source.visuals(np.arange(N)))
  want = model.apply(
    {"params": slow.params["slow"]}, seen, method="encode_visual"
  )
  assert [x.latent.shape for x in got.levels] == [(N, 4, 8), (N, 16, 8)]
  for ours, theirs in zip(got.levels, want.levels, strict=True):
    np.testing.assert_allclose(ours.latent, theirs.latent, atol=1e-4)
    assert ours.mask.all()


@pytest.mark.parametrize("count", [1, 2, 8, 9, 70, 260])
def test_any_number_of_texts_is_encoded_as_each_alone(fast, count):
  text = synthetic.text(np.random.default_rng(count), count)
  encoder = encode.make_text_encoder(fast)
  got = encoder(text)
  assert got.shape == (count, 8)
  few = np.unique([0, count // 2, count - 1])
  alone = np.concatenate([encoder(text[i : i + 1]) for i in few])
  np.testing.assert_allclose(got[few], alone, atol=1e-5)
  np.testing.assert_array_equal(encode.encode_texts(fast, text), got)


def test_texts_are_encoded_in_few_shapes(fast):
  shapes = set()
  model = mock.Mock(spec=build.fast_models.Fast)
  model.apply = lambda _, text, method: (
    shapes.add(text.shape[0]) or jnp.ones((text.shape[0], 8))
  )
  jax.clear_caches()  # of the true model
  with mock.patch.object(build, "fast_model", return_value=model):
    encoder = encode.make_text_encoder(fast)
    for count in range(1, 300, 7):
      assert len(encoder(np.ones((count, 7), np.int32))) == count
  assert shapes == {1, 8, 64, 256}
  jax.clear_caches()


def test_a_corpus_is_encoded_once(fast, tmp_path):
  source, asked = make_source()
  made = encode.write_vectors(fast, source, tmp_path / "corpus")
  assert isinstance(made, types.Corpus)
  assert len(asked) == N
  again = encode.write_vectors(fast, source, tmp_path / "corpus")
  assert len(asked) == N  # read, not made
  np.testing.assert_array_equal(made.vectors, again.vectors)
  assert made.ids == again.ids == source.ids


def test_a_corpus_of_another_fast_or_gallery_is_refused(fast, tmp_path):
  source, _ = make_source()
  encode.write_vectors(fast, source, tmp_path / "corpus")
  params = jax.tree.map(lambda x: x + 1, fast.params)
  with pytest.raises(ValueError, match=r"fast\.digest"):
    encode.write_vectors(
      fast._replace(params=params), source, tmp_path / "corpus"
    )
  with pytest.raises(ValueError, match=r"items\.count"):
    encode.write_vectors(fast, make_source(5)[0], tmp_path / "corpus")
  for stale in ("remake", "replace"):
    made = encode.write_vectors(
      fast, make_source(5)[0], tmp_path / "corpus", stale=stale
    )
    assert len(made.ids) == 5
    encode.write_vectors(fast, source, tmp_path / "corpus", stale=stale)
  with open(tmp_path / "corpus" / "vectors-00000-of-00001.npy", "ab") as file:
    file.write(b"x")
  for stale in ("remake", "refuse"):
    with pytest.raises(ValueError, match=r"must have .* bytes"):
      encode.write_vectors(fast, source, tmp_path / "corpus", stale=stale)
  encode.write_vectors(fast, source, tmp_path / "corpus", stale="replace")


def test_the_same_ids_of_other_data_are_other_visuals(fast, tmp_path):
  """Scenes of another seed have the names of these."""
  source, _ = make_source()
  here, there = (
    dataclasses.replace(source, origin={"dataset": "scenes", "seed": seed})
    for seed in (0, 1)
  )
  encode.write_vectors(fast, here, tmp_path / "corpus")
  with pytest.raises(ValueError, match=r"split\.seed"):
    encode.write_vectors(fast, there, tmp_path / "corpus")


def test_pictures_that_were_replaced_are_other_visuals(fast, tmp_path):
  source, _ = make_source()
  here, there = (
    dataclasses.replace(source, contents=lambda digest=digest: digest)
    for digest in ("a", "b")
  )
  encode.write_vectors(fast, here, tmp_path / "corpus")
  encode.write_vectors(fast, here, tmp_path / "corpus")
  with pytest.raises(ValueError, match=r"split\.contents"):
    encode.write_vectors(fast, there, tmp_path / "corpus")
  both = sources.join(here, renamed(there))
  assert both.contents() == "a + b"


def renamed(source):
  return dataclasses.replace(source, ids=tuple(f"{i}'" for i in source.ids))


def test_a_store_holds_every_memory_in_order(slow, tmp_path):
  source, asked = make_source()
  with mock.patch.object(
    encode,
    "encode_memories",
    lambda run, source: MEMORIES(run, source, batch_size=4),
  ):
    made = encode.write_memories(slow, source, tmp_path / "store")
  assert made.ids == source.ids
  encode.write_memories(slow, source, tmp_path / "store")
  assert len(asked) == N
  (want,) = MEMORIES(slow, source)
  got = made.read(np.arange(N))
  for ours, theirs in zip(got.levels, want.levels, strict=True):
    assert ours.latent.dtype == np.float32
    np.testing.assert_allclose(ours.latent, theirs.latent, atol=1e-4)
  params = jax.tree.map(lambda x: x + 1, slow.params)
  with pytest.raises(ValueError, match=r"slow\.digest"):
    encode.write_memories(
      slow._replace(params=params), source, tmp_path / "store"
    )
