"""A searcher that was warmed: no question waits for a compiler.

What it answers is for test_end_to_end.py.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from fs_jax import types
from fs_jax.data import tokenizer as tokenizers
from fs_jax.gallery import encode, exact
from fs_jax.gallery import memories as memory_store
from fs_jax.machine import compile_cache
from fs_jax.models import build
from fs_jax.models.text import PAD
from fs_jax.runs import stages
from fs_jax.search import fusion, rerank, searcher
from fs_jax.search import scorer as scorers
from fs_jax.train import tasks
from tests.support import synthetic

C = 270  # more than the most candidates
WORDS = tuple(map(str, range(synthetic.VOCABULARY - 4)))


class Made(NamedTuple):
  """A searcher and its parts."""

  search: searcher.Retriever
  scorer: scorers.Scorer
  fast: stages.Run
  slow: stages.Run
  memories: memory_store.Store


def run_of(stage, tokenizer):
  cfg = synthetic.cfg(stage)
  init = tasks.make(cfg, synthetic.VOCABULARY).init
  params = jax.jit(init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.2 * jnp.asarray(rng.normal(size=x.shape), jnp.float32),
    params,
  )
  return stages.Run(epath.Path("nowhere"), cfg, tokenizer, params, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Two levels of random memories and random vectors; blocks of up to 64."""
  tokenizer = tokenizers.train([" ".join(WORDS)], synthetic.cfg().tokens)
  fast, slow = run_of("fast", tokenizer), run_of("slow", tokenizer)
  rng = np.random.default_rng(1)
  levels = []
  for tokens in (4, 16):
    latent = rng.normal(size=(C, tokens, 8)).astype(np.float32)
    levels.append(types.Level(latent, np.ones((C, tokens), bool)))
  folder = tmp_path_factory.mktemp("gallery") / "store"
  with memory_store.Writer(folder, {"slow": slow.slow_contract}) as writer:
    writer.append(types.Memory(tuple(levels)), [f"v{i}" for i in range(C)])
  memories = memory_store.Store(folder)
  vectors = rng.normal(size=(C, 8)).astype(np.float32)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  scorer = scorers.Scorer(slow, memories, pairs=64)
  fit = fusion.Fit(0.5, 3.0, 1.0, 0.0, (), 5, 1, 0)
  search = searcher.Retriever(fast, exact.index(vectors), scorer, fit)
  return Made(search, scorer, fast, slow, memories)


@pytest.fixture(scope="module")
def warm(made):
  jax.clear_caches()  # other tests may have asked a model of these sizes
  with compile_cache.counting() as count:
    seconds = made.search.warm()
  assert count.programs > 0
  assert 0 < seconds <= count.elapsed
  return made


def asked(rng, queries):
  """Queries of one to as many words as fit."""
  return [
    " ".join(rng.choice(WORDS, size=rng.integers(1, synthetic.LENGTH - 1)))
    for _ in range(queries)
  ]


def test_no_question_compiles_after_it_was_warmed(warm):
  rng = np.random.default_rng(2)
  with compile_cache.counting() as count:
    for call in range(500):
      # Mostly a few; every hundredth time more than a block of the encoder.
      queries = 1 + int(24 * rng.random() ** 4) if call % 100 else 300
      k, rerank_k = (int(x) for x in rng.integers(1, 257, size=2))
      if call % 10:  # all pairs of all calls would take long
        rerank_k = min(rerank_k, 1 + 60 // queries)
      answer = warm.search(asked(rng, queries), k=k, rerank_k=rerank_k)
      assert answer.final.rows.shape == (queries, k)
  assert count.programs == 0


def test_texts_of_any_width_and_lists_of_any_length_compile_nothing(warm):
  rng = np.random.default_rng(3)
  with compile_cache.counting() as count:
    for _ in range(40):
      text = synthetic.text(rng, int(rng.integers(1, 9)))
      width = int((text != PAD).sum(axis=1).max())
      text = text[:, : rng.integers(width, synthetic.LENGTH + 1)]
      k = int(rng.integers(1, 40))
      rows = rng.integers(-1, C, size=(len(text), k))
      assert warm.scorer(text, rows).shape == rows.shape
      rerank.targets(text)
  assert count.programs == 0


@pytest.mark.parametrize(("queries", "k"), [(1, 10), (9, 20), (70, 1)])
def test_answers_are_those_of_unpadded_shapes(warm, queries, k):
  rng = np.random.default_rng(queries)
  texts = asked(rng, queries)
  answer = warm.search(texts, k=k, rerank_k=k)
  text = warm.fast.tokenizer.encode(texts)
  fast = build.fast_model(warm.fast.cfg, synthetic.VOCABULARY)
  embed = functools.partial(
    build.apply, fast, warm.fast.params["fast"], method="text"
  )
  vectors = np.asarray(jax.jit(embed)(text))
  np.testing.assert_allclose(
    encode.text_vectors(warm.fast, text), vectors, atol=1e-5
  )
  model = build.slow_model(warm.slow.cfg, synthetic.VOCABULARY)

  @jax.jit
  def score(params, memory, words):
    h = build.apply(model, params, memory, words, method="log_likelihood")[0]
    return h[:, 0]

  words = np.repeat(text, k, axis=0)[:, None]
  memory = warm.memories.read(answer.fast.rows.reshape(-1))
  want = score(warm.slow.params["slow"], memory, words).reshape(queries, k)
  got = warm.scorer(text, answer.fast.rows)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_fast_alone_is_warmed_too(made):
  vectors = np.eye(8, dtype=np.float32)
  search = searcher.Retriever(made.fast, exact.index(vectors))
  search.warm()
  with compile_cache.counting() as count:
    for queries in (1, 5, 65):
      search(asked(np.random.default_rng(4), queries), k=queries)
  assert count.programs == 0
