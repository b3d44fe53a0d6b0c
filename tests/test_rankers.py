"""Rankers over stand-ins: who is asked, in which order, what stays behind."""

from typing import cast

import numpy as np
import pytest

from fs_jax import calibrate, index, rankers, rerank, runs, types

C, Q, L = 30, 7, 6


def text_of(queries):
  """BOS, words, EOS, padding: of lengths that differ."""
  text = np.zeros((queries, L), np.int32)
  for q, row in enumerate(text):
    words = 1 + q % (L - 2)
    row[: words + 2] = [2, *range(4, 4 + words), 3]
  return text


class Judge:
  """h of every pair, by table; remembers what it was asked."""

  def __init__(self, seed=0):
    rng = np.random.default_rng(seed)
    self.table = -5 * rng.random((Q, C)).astype(np.float32)
    self.asked = []

  def __len__(self):
    return C

  def __call__(self, text, rows, progress=None):
    rows = np.asarray(rows)
    self.asked.append(rows)
    h = np.take_along_axis(self.table, np.maximum(rows, 0), axis=1)
    return np.where(rows >= 0, h, -np.inf)

  def everything(self, text, progress=None):
    return self.table


class Base:
  """Fast's list, by table of dot products."""

  def __init__(self, depth=12):
    rng = np.random.default_rng(1)
    self.dots = rng.uniform(-1, 1, (Q, C)).astype(np.float32)
    self.rows = np.argsort(-self.dots, axis=1)[:, :depth].astype(np.int32)
    self.stages_ms = {}

  def __call__(self, text):
    self.stages_ms = {"encode": 1.0, "search": 2.0}
    dots = np.take_along_axis(self.dots, self.rows, axis=1)
    return types.Candidates(self.rows, dots)


def fit_of(gamma=0.5, beta=3.0):
  return calibrate.Fit(gamma, beta, 1.0, 0.0, (), 5, Q, 0)


def judge():
  return cast(rerank.Scorer, Judge())


def test_reranked_orders_k_and_leaves_the_rest_behind():
  scorer, base, fit, text = Judge(), Base(), fit_of(), text_of(Q)
  k = 5
  ranker = rankers.Reranked(base, cast(rerank.Scorer, scorer), fit, k)
  found = ranker(text)
  assert [a.shape for a in scorer.asked] == [(Q, k)]
  n = rerank.targets(text)
  for q in range(Q):
    both = {
      row: scorer.table[q, row] / n[q] ** fit.gamma
      + fit.beta * base.dots[q, row]
      for row in base.rows[q, :k]
    }
    assert list(found.rows[q, :k]) == sorted(both, key=lambda r: -both[r])
    assert list(found.rows[q, k:]) == list(base.rows[q, k:])
    assert (np.diff(found.scores[q]) <= 0).all()
  assert list(ranker.stages_ms) == ["encode", "search", "rerank"]
  assert ranker.stages_ms["search"] == 2.0


def test_equal_scores_keep_the_order_of_fast():
  scorer, base = Judge(), Base()
  scorer.table[:] = -1
  ranker = rankers.Reranked(
    base, cast(rerank.Scorer, scorer), fit_of(beta=0.0), 8
  )
  np.testing.assert_array_equal(ranker(text_of(Q)).rows, base.rows)


def test_slow_is_the_whole_gallery_sorted():
  scorer = Judge()
  ranker = rankers.Slow(cast(rerank.Scorer, scorer), depth=10)
  found = ranker(text_of(Q))
  order = np.argsort(-scorer.table, axis=1)[:, :10]
  np.testing.assert_array_equal(found.rows, order)
  np.testing.assert_array_equal(
    found.scores, np.take_along_axis(scorer.table, order, axis=1)
  )
  assert list(ranker.stages_ms) == ["score"] and ranker.stages_ms["score"] > 0
  assert rankers.Slow(judge(), depth=99)(text_of(Q)).rows.shape == (Q, C)


@pytest.fixture
def encoded(monkeypatch):
  """Text vectors of a stand-in for Fast."""
  rng = np.random.default_rng(2)
  queries = rng.normal(size=(Q, 4)).astype(np.float32)
  monkeypatch.setattr(
    rankers.encode, "text_encoder", lambda run: lambda text: queries
  )
  monkeypatch.setattr(rankers.encode, "text_vectors", lambda run, text: queries)
  return queries


def test_fast_is_the_index(encoded):
  vectors = np.random.default_rng(3).normal(size=(C, 4)).astype(np.float32)
  ranker = rankers.Fast(cast(runs.Run, None), index.exact(vectors), depth=9)
  found = ranker(text_of(Q))
  order = np.argsort(-encoded @ vectors.T, axis=1)[:, :9]
  np.testing.assert_array_equal(found.rows, order)
  assert list(ranker.stages_ms) == ["encode", "search"]


def test_in_group_scores_every_member_and_only_those(encoded):
  vectors = np.random.default_rng(3).normal(size=(C, 4)).astype(np.float32)
  rng = np.random.default_rng(4)
  groups = np.stack([rng.permutation(C)[:5] for _ in range(Q)]).astype(np.int32)
  groups[2, 3:] = -1  # a smaller group
  text, scorer, fit = text_of(Q), Judge(), fit_of()
  fast = rankers.fast_in_group(cast(runs.Run, None), vectors, text, groups)
  slow = cast(rerank.Scorer, scorer)
  both = rankers.reranked_in_group(fast, slow, fit, text)
  alone = rankers.slow_in_group(slow, text, groups)
  n = rerank.targets(text)
  for found in (fast, both, alone):
    np.testing.assert_array_equal(found.rows, groups)
    assert (found.scores[2, 3:] == -np.inf).all()
  for q, group in enumerate(groups):
    for i, row in enumerate(group):
      if row < 0:
        continue
      dot, h = encoded[q] @ vectors[row], scorer.table[q, row]
      u = h / n[q] ** fit.gamma
      np.testing.assert_allclose(fast.scores[q, i], dot, rtol=1e-5)
      np.testing.assert_allclose(alone.scores[q, i], h)
      np.testing.assert_allclose(
        both.scores[q, i], u + fit.beta * dot, rtol=1e-4, atol=1e-5
      )
