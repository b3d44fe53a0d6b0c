"""Slow over stored memories: any shape of lists, and the order it makes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from fs_jax import types
from fs_jax.data import tokenizer as tokenizers
from fs_jax.gallery import memories as memory_store
from fs_jax.machine import compile_cache
from fs_jax.models import build
from fs_jax.models import slow as slow_models
from fs_jax.runs import stages
from fs_jax.search import fusion, rerank
from fs_jax.search import scorer as scorers
from fs_jax.train import tasks
from tests.support import synthetic

C = 11


def weights_of(gamma=0.5, beta=3.0):
  return fusion.Weights(gamma, beta, 1.0, 0.0, (), 5, 1, 0)


@functools.cache
def judge():
  """A Slow with parameters that are all at work; memories with and without
  masked tokens."""
  cfg = synthetic.cfg("slow")
  words = " ".join(map(str, range(synthetic.VOCABULARY - 4)))
  tokenizer = tokenizers.train([words], cfg.tokens)
  assert tokenizer.vocab_size == synthetic.VOCABULARY
  init = tasks.make(cfg, synthetic.VOCABULARY).init
  params = jax.jit(init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.2 * jnp.asarray(rng.normal(size=x.shape), jnp.float32),
    params,
  )
  run = stages.Run(epath.Path("nowhere"), cfg, tokenizer, params, 1)
  levels = []
  for tokens in (4, 16):
    latent = rng.normal(size=(C, tokens, 8)).astype(np.float32)
    mask = rng.random((C, tokens)) < 0.7
    mask[:, 0] = True
    levels.append(types.Level(latent, mask))
  return run, types.Memory(tuple(levels))


@pytest.fixture
def memories(tmp_path):
  run, memory = judge()
  with memory_store.Writer(
    tmp_path / "s", {"slow": run.slow_contract}
  ) as writer:
    writer.append(memory, [f"v{i}" for i in range(C)])
  return memory_store.Memories(tmp_path / "s", {"slow": run.slow_contract})


@functools.cache
def table():
  """Texts, and h of each with every row of the gallery, one pair a call."""
  run, memory = judge()
  text = synthetic.text(np.random.default_rng(3), 5)
  model = build.slow_model(run.cfg, run.tokenizer.vocab_size)

  @jax.jit
  def one(memory, words):
    apply = functools.partial(build.apply, model, run.params["slow"])
    return apply(memory, words[None, None], method="log_likelihood")[0][0, 0]

  row = lambda i: jax.tree.map(lambda x: x[i : i + 1], memory)
  h = [[one(row(i), jnp.asarray(words)) for i in range(C)] for words in text]
  return text, np.array(h, np.float32)


@pytest.mark.parametrize(("queries", "k"), [(1, 1), (3, 4), (5, 7)])
def test_lists_are_scored_as_pairs_alone(memories, queries, k):
  text, h = table()
  rng = np.random.default_rng(queries * 10 + k)
  rows = rng.integers(C, size=(queries, k))
  want = np.take_along_axis(h[:queries], rows, axis=1)
  assert np.ptp(h, axis=1).min() > 1e-2  # pictures matter
  for pairs in (1, 4, 256):  # lists split, one at a time, all at once
    scorer = scorers.Scorer(judge()[0], memories, pairs=pairs)
    got = scorer(text[:queries], rows)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    if (queries, k) != (3, 4):
      break  # one shape says it of all


def test_no_row_has_no_score(memories):
  text, h = table()
  scorer = scorers.Scorer(judge()[0], memories)
  assert len(scorer) == C
  rows = np.array([[3, -1, 5], [-1, -1, -1]])
  got = scorer(text[:2], rows)
  np.testing.assert_allclose(got[0, [0, 2]], h[0, [3, 5]], rtol=1e-4)
  assert (got[rows < 0] == -np.inf).all()
  assert np.isfinite(got[rows >= 0]).all()


def test_the_whole_gallery_is_scored_as_lists_of_all(memories, monkeypatch):
  text, h = table()
  read, told = [], []
  real = memories.read
  monkeypatch.setattr(
    memories, "read", lambda rows: read.extend(rows) or real(rows)
  )
  scorer = scorers.Scorer(judge()[0], memories, pairs=4)
  got = scorer.score_all(text, told.append)
  np.testing.assert_allclose(got, h, rtol=1e-4, atol=1e-4)
  assert sorted(row for row in read if row >= 0) == list(range(C))  # once each
  assert told[-1] == h.size and told == sorted(told)
  assert scorer.score_all(text[:0]).shape == (0, C)


def test_what_is_warmed_is_what_is_asked(memories):
  text, _ = table()
  scorer = scorers.Scorer(judge()[0], memories, pairs=8)
  scorer.warm(scorer.list_shapes(text, 3) | scorer.list_shapes(text))
  with compile_cache.counting() as count:
    scorer(text, np.zeros((len(text), 3), int))
    scorer.score_all(text)
  assert count.programs == 0


def test_progress_counts_pairs(memories):
  text, _ = table()
  told = []
  scorer = scorers.Scorer(judge()[0], memories, pairs=4)
  scorer(text, np.zeros((len(text), 3), int), told.append)
  assert told[-1] == 3 * len(text) and told == sorted(told)


def test_a_text_that_no_model_reads_is_refused(memories):
  scorer = scorers.Scorer(judge()[0], memories)
  with pytest.raises(ValueError, match=r"at most 7 tokens; got 8\. encode it"):
    scorer(np.full((1, 8), 5), np.zeros((1, 1), int))
  with pytest.raises(ValueError, match=r"pairs: must be >= 1; got 0\. pass"):
    scorers.Scorer(judge()[0], memories, pairs=0)


# Blocks.


@pytest.mark.parametrize("pairs", [1, 4, 8, 64, 256, 1024])
def test_blocks_hold_every_pair_once_in_a_small_grid(pairs):
  sizes = scorers._sizes(pairs)
  rng = np.random.default_rng(pairs)
  shapes = set()
  for _ in range(60):
    queries, k = int(rng.integers(1, 40)), int(rng.integers(1, 60))
    lengths = rng.choice([4, 8], size=queries)
    found = np.zeros((queries, k), int)
    for block in scorers._blocks(lengths, k, sizes):
      np.add.at(found, (block.queries, block.columns), 1)
      assert len(block.queries) <= block.shape.pairs <= pairs
      assert len(set(block.queries)) <= block.shape.texts
      assert (lengths[block.queries] == block.shape.length).all()
      shapes.add(block.shape)
    assert (found == 1).all()
  assert len(shapes) <= 2 * 2 * len(sizes)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 10, 12, 20, 50, 65, 170, 1200])
def test_padding_is_at_most_half_of_what_is_left_and_a_few(count):
  pieces = list(scorers._pieces(count, scorers._sizes(scorers.PAIRS)))
  assert [start for start, *_ in pieces] == [
    0,
    *(stop for _, stop, _ in pieces[:-1]),
  ]
  assert pieces[-1][1] == count
  assert sum(size for *_, size in pieces) <= 1.5 * count + 8


def test_targets_are_words_and_an_end_twice():
  text = np.array([[2, 5, 6, 3, 0], [2, 5, 3, 0, 0]], np.int32)
  with compile_cache.counting() as count:
    np.testing.assert_array_equal(rerank.count_targets(text), [6, 4])
  assert count.programs == 0
  np.testing.assert_array_equal(
    rerank.count_targets(text), slow_models.targets_of(jnp.asarray(text))
  )


# Order.


def candidates(queries=4, depth=9, seed=0):
  rng = np.random.default_rng(seed)
  scores = -np.sort(-rng.uniform(-1, 1, (queries, depth)), axis=1)
  rows = np.stack([rng.permutation(50)[:depth] for _ in range(queries)])
  return types.Candidates(rows.astype(np.int32), scores.astype(np.float32))


def h_of(queries, k, seed=1):
  h = -20 * np.random.default_rng(seed).random((queries, k))
  return h.astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, 9])
@pytest.mark.parametrize(("gamma", "beta"), [(0.0, 0.0), (0.5, 3.0), (1, 0.1)])
def test_the_first_k_are_sorted_by_what_both_say(k, gamma, beta):
  found, h, n = candidates(), h_of(4, k), np.array([2.0, 4.0, 6.0, 8.0])
  got = rerank.rerank(found, h, n, weights_of(gamma, beta))
  for q in range(4):
    both = h[q] / n[q] ** gamma + beta * found.scores[q, :k].astype(float)
    order = sorted(range(k), key=lambda i: (-both[i], i))
    assert list(got.rows[q, :k]) == [found.rows[q, i] for i in order]
    np.testing.assert_allclose(got.scores[q, :k], both[order], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 5])
def test_the_others_stay_behind_in_their_order(k):
  found, h = candidates(), h_of(4, k)
  got = rerank.rerank(found, h, np.full(4, 6.0), weights_of())
  np.testing.assert_array_equal(got.rows[:, k:], found.rows[:, k:])
  assert (np.diff(got.scores, axis=1) <= 0).all()
  assert (got.scores[:, k] < got.scores[:, k - 1]).all()
  assert got.rows.shape == found.rows.shape
  assert np.isfinite(got.scores).all()
  assert got.scores.dtype == np.float32


@pytest.mark.parametrize("k", [1, 4])
def test_small_differences_of_fast_survive_behind_large_scores(k):
  """As float32, 1e-6 beside -1e4 is nothing: ties would be ranked anew."""
  found = candidates(1, 9)
  dots = 0.5 - 1e-6 * np.array([[0, 1, 2, 3, 4, 4, 5, 6, 7]], np.float32)
  found = found._replace(scores=dots)
  h = np.full((1, k), -1e4, np.float32)
  got = rerank.rerank(found, h, np.array([6.0]), weights_of(gamma=0.0))
  fell = np.diff(dots[0, k:]) < 0
  np.testing.assert_array_equal(np.diff(got.scores[0, k:]) < 0, fell)
  assert (got.scores[0, k:] < got.scores[0, k - 1]).all()


def test_a_slow_without_opinion_keeps_fasts_order():
  found = candidates(depth=40)  # short lists are sorted stably by any sort
  flat = np.full((4, 30), -7.0, np.float32)
  for beta in (0.0, 2.0):
    got = rerank.rerank(found, flat, np.full(4, 6.0), weights_of(beta=beta))
    np.testing.assert_array_equal(got.rows, found.rows)
  two = flat.copy()
  two[:, ::3] = -6
  got = rerank.rerank(found, two, np.full(4, 6.0), weights_of(beta=0.0))
  order = [*range(0, 30, 3), *(i for i in range(30) if i % 3), *range(30, 40)]
  np.testing.assert_array_equal(got.rows, found.rows[:, order])
  tied = found._replace(scores=np.zeros_like(found.scores))
  got = rerank.rerank(tied, flat, np.full(4, 6.0), weights_of())
  np.testing.assert_array_equal(got.rows, found.rows)


def test_a_huge_beta_is_fasts_order():
  found, h = candidates(), h_of(4, 6)
  got = rerank.rerank(found, h, np.full(4, 6.0), weights_of(beta=1e9))
  np.testing.assert_array_equal(got.rows, found.rows)
  other = rerank.rerank(found, h, np.full(4, 6.0), weights_of(beta=0.0))
  assert (other.rows != found.rows).any()


@pytest.mark.parametrize("k", [3, 6, 9])
def test_short_rows_end_in_nothing(k):
  found, h = candidates(), h_of(4, k)
  counts = np.array([9, 5, 1, 0])
  gone = np.arange(9)[None] >= counts[:, None]
  found = types.Candidates(
    np.where(gone, -1, found.rows), np.where(gone, -np.inf, found.scores)
  )
  h = np.where(gone[:, :k], -np.inf, h)
  got = rerank.rerank(found, h, np.full(4, 6.0), weights_of())
  np.testing.assert_array_equal(got.rows < 0, gone)
  assert not np.isnan(got.scores).any()
  np.testing.assert_array_equal(got.scores == -np.inf, gone)
  for q, count in enumerate(counts):
    assert sorted(got.rows[q, :count]) == sorted(found.rows[q, :count])
    assert (np.diff(got.scores[q, :count]) <= 0).all()
