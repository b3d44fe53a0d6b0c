"""A Searcher answers as its parts would, and once warmed compiles nothing.

That folders are opened, and what does not fit is refused, is for tests/launch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from fs_jax import types
from fs_jax.data import sources
from fs_jax.data import tokenizer as tokenizers
from fs_jax.gallery import encode, exact, items
from fs_jax.gallery import memories as memory_store
from fs_jax.machine import compile_cache
from fs_jax.models import build
from fs_jax.models.text import PAD
from fs_jax.runs import stages
from fs_jax.search import fusion, loading, rerank, searcher
from fs_jax.search import scorer as scorers
from fs_jax.train import tasks
from tests.support import synthetic

C = 270  # more than the most candidates
VECTORS: list[np.ndarray] = []  # of the gallery, once it is made
WORDS = tuple(map(str, range(synthetic.VOCABULARY - 4)))


class Made(NamedTuple):
  """A searcher and its parts."""

  search: searcher.Searcher
  scorer: scorers.Scorer
  fast: stages.Run
  slow: stages.Run
  memories: memory_store.Memories


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


def shown(folder):
  """Items of the gallery: v0, v1, ..., each with its caption."""
  source = sources.Source(
    ids=tuple(f"v{i}" for i in range(C)),
    all_captions=tuple((f"caption {i}",) for i in range(C)),
    groups=np.full(C, -1, np.int32),
    visuals=lambda rows: np.zeros((len(rows), 1, 2, 2, 3), np.uint8),
    attribution="drawn by nobody",
    paths=tuple(f"/pictures/{i}.png" for i in range(C)),
  )
  items.write(folder.parent / "items", source, items.make_contract(source))
  return items.Items(folder.parent / "items")


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
  memories = memory_store.Memories(folder)
  vectors = rng.normal(size=(C, 8)).astype(np.float32)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  VECTORS.append(vectors)
  weights = fusion.Weights(0.5, 3.0, 1.0, 0.0, (), 5, 1, 0)
  judge = loading.Judge(slow, memories, weights)
  search = searcher.Searcher(
    loading.Gallery(fast, exact.make_index(vectors), shown(folder), judge)
  )
  search.scorer = scorers.Scorer(slow, memories, pairs=64)
  return Made(search, search.scorer, fast, slow, memories)


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


@pytest.mark.slow
def test_no_question_compiles_after_it_was_warmed(warm):
  rng = np.random.default_rng(2)
  with compile_cache.counting() as count:
    for call in range(500):
      # Mostly a few; every hundredth time more than a block of the encoder.
      queries = 1 + int(24 * rng.random() ** 4) if call % 100 else 300
      k, rerank_k = (int(x) for x in rng.integers(1, 257, size=2))
      if call % 10:  # all pairs of all calls would take long
        rerank_k = min(rerank_k, 1 + 60 // queries)
      answers = warm.search.search(asked(rng, queries), k=k, rerank=rerank_k)
      assert [len(one.hits) for one in answers] == [min(k, C)] * queries
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
      rerank.count_targets(text)
  assert count.programs == 0


@pytest.mark.parametrize(("queries", "k"), [(1, 10), (9, 20), (70, 1)])
def test_answers_are_those_of_unpadded_shapes(warm, queries, k):
  rng = np.random.default_rng(queries)
  texts = asked(rng, queries)
  answers = warm.search.search(texts, k=k, rerank=k)
  rows = np.array([one.fast_rows for one in answers])
  text = warm.fast.tokenizer.encode(texts)
  fast = build.fast_model(warm.fast.cfg, synthetic.VOCABULARY)
  embed = functools.partial(
    build.apply, fast, warm.fast.params["fast"], method="text"
  )
  vectors = np.asarray(jax.jit(embed)(text))
  np.testing.assert_allclose(
    encode.encode_texts(warm.fast, text), vectors, atol=1e-5
  )
  model = build.slow_model(warm.slow.cfg, synthetic.VOCABULARY)

  @jax.jit
  def score(params, memory, words):
    h = build.apply(model, params, memory, words, method="log_likelihood")[0]
    return h[:, 0]

  words = np.repeat(text, k, axis=0)[:, None]
  memory = warm.memories.read(rows.reshape(-1))
  want = score(warm.slow.params["slow"], memory, words).reshape(queries, k)
  got = warm.scorer(text, rows)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_an_answer_says_what_each_part_said(made):
  query = "1 2 3"
  answer = made.search(query, k=6, rerank=4)
  text = made.fast.tokenizer.encode([query])
  dots = encode.encode_texts(made.fast, text) @ VECTORS[0].T
  order = np.argsort(-dots[0], kind="stable")[:6]
  assert answer.fast_rows == tuple(order)
  np.testing.assert_allclose(answer.fast_scores, dots[0, order], atol=1e-5)
  h = made.scorer(text, order[None, :4])[0]
  both = h / rerank.count_targets(text)[0] ** 0.5 + 3.0 * dots[0, order[:4]]
  best = np.argsort(-both, kind="stable")
  assert [hit.row for hit in answer.hits] == [*order[best], *order[4:]]
  for at, hit in enumerate(answer.hits):
    was = list(order).index(hit.row)
    assert hit.moved == was - at
    assert hit.id == hit.item.id == f"v{hit.row}"
    assert hit.item.path == f"/pictures/{hit.row}.png"
    assert hit.item.caption == f"caption {hit.row}"
    np.testing.assert_allclose(hit.fast, dots[0, hit.row], atol=1e-5)
    if was < 4:
      np.testing.assert_allclose(hit.score, both[was], rtol=1e-4)
    else:  # behind what Slow looked at
      assert hit.score is None and hit.moved == 0
  assert list(answer.stages_ms) == ["encode", "search", "rerank"]
  assert answer.query in str(answer) and "caption" in str(answer)


def test_many_queries_are_answered_as_each_alone(made):
  texts = asked(np.random.default_rng(5), 3)
  for text, together in zip(texts, made.search.search(texts), strict=True):
    alone = made.search(text)
    assert [hit.id for hit in alone.hits] == [hit.id for hit in together.hits]
  assert made.search.search([]) == []


@pytest.mark.parametrize(
  ("query", "how", "message"),
  [
    ("1", {"k": 0}, "k: must be at least 1; got 0"),
    ("1", {"rerank": -1}, "rerank: must be at least 0; got -1"),
    ("zzz", {}, "zzz"),
  ],
)
def test_what_cannot_be_answered_is_refused(made, query, how, message):
  with pytest.raises(ValueError, match=message):
    made.search(query, **how)


def test_fast_alone_answers_and_refuses_to_re_rank(made, tmp_path):
  alone = searcher.Searcher(
    loading.Gallery(made.fast, made.search.index, made.search.items)
  )
  alone.warm()
  with compile_cache.counting() as count:
    for queries in (1, 5, 65):
      texts = asked(np.random.default_rng(4), queries)
      answers = alone.search(texts, k=queries)
  assert count.programs == 0
  assert answers[0].hits[0].score is None
  assert list(answers[0].stages_ms) == ["encode", "search"]
  for wrong in (lambda: alone("1", rerank=5), lambda: alone.reranker(5)):
    with pytest.raises(ValueError, match=r"^rerank: .*slow=True"):
      wrong()
  with pytest.raises(ValueError, match=r"^pictures: "):
    alone.pictures([0])


def test_a_string_is_not_taken_for_a_list_of_letters(made):
  with pytest.raises(ValueError, match="must be several; got the string '1 2'"):
    made.search.search("1 2")
