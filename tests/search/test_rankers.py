"""Rankers over stand-ins: who is asked, in which order, what stays behind."""

from typing import cast

import jax
import numpy as np
import pytest

from fs_jax import types
from fs_jax.gallery import exact, memories
from fs_jax.runs import stages
from fs_jax.search import fusion, rankers, rerank
from fs_jax.search import scorer as scorers
from tests.search import test_rerank
from tests.support import synthetic

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

  def score_all(self, text, progress=None):
    if progress is not None:
      progress(self.table.size)
    return self.table

  def list_shapes(self, text, k=None):
    return {(len(text), k)}

  def warm(self, shapes):
    self.warmed = set(shapes)


class Base:
  """Fast's list, by table of dot products."""

  def __init__(self, depth=12):
    rng = np.random.default_rng(1)
    self.dots = rng.uniform(-1, 1, (Q, C)).astype(np.float32)
    self.rows = np.argsort(-self.dots, axis=1)[:, :depth].astype(np.int32)
    self.stages_ms = {}
    self.warmed = 0

  def warm(self, text):
    self.warmed += len(text)

  def __call__(self, text):
    self.stages_ms = {"encode": 1.0, "search": 2.0}
    dots = np.take_along_axis(self.dots, self.rows, axis=1)
    return types.Candidates(self.rows, dots)


def weights_of(gamma=0.5, beta=3.0):
  return fusion.Weights(gamma, beta, 1.0, 0.0, (), 5, Q, 0)


def judge():
  return cast(scorers.Scorer, Judge())


def test_reranked_orders_k_and_leaves_the_rest_behind():
  scorer, base, weights, text = Judge(), Base(), weights_of(), text_of(Q)
  k = 5
  ranker = rankers.Reranker(base, cast(scorers.Scorer, scorer), weights, k)
  found = ranker(text)
  assert [a.shape for a in scorer.asked] == [(Q, k)]
  n = rerank.count_targets(text)
  for q in range(Q):
    both = {
      row: scorer.table[q, row] / n[q] ** weights.gamma
      + weights.beta * base.dots[q, row]
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
  ranker = rankers.Reranker(
    base, cast(scorers.Scorer, scorer), weights_of(beta=0.0), 8
  )
  np.testing.assert_array_equal(ranker(text_of(Q)).rows, base.rows)


def test_slow_is_the_whole_gallery_sorted():
  scorer = Judge()
  ranker = rankers.Slow(cast(scorers.Scorer, scorer), depth=10)
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
  monkeypatch.setattr(rankers.encode, "encode_texts", lambda run, text: queries)
  return queries


def test_fast_is_the_index(encoded):
  vectors = np.random.default_rng(3).normal(size=(C, 4)).astype(np.float32)
  ranker = rankers.Fast(
    lambda text: encoded, exact.make_index(vectors), depth=9
  )
  found = ranker(text_of(Q))
  order = np.argsort(-encoded @ vectors.T, axis=1)[:, :9]
  np.testing.assert_array_equal(found.rows, order)
  assert list(ranker.stages_ms) == ["encode", "search"]


def test_in_group_scores_every_member_and_only_those(encoded):
  vectors = np.random.default_rng(3).normal(size=(C, 4)).astype(np.float32)
  rng = np.random.default_rng(4)
  groups = np.stack([rng.permutation(C)[:5] for _ in range(Q)]).astype(np.int32)
  groups[2, 3:] = -1  # a smaller group
  text, scorer, weights = text_of(Q), Judge(), weights_of()
  fast = rankers.score_groups_with_fast(
    cast(stages.Run, None), vectors, text, groups
  )
  slow = cast(scorers.Scorer, scorer)
  both = rankers.rerank_groups(fast, slow, weights, text)
  alone = rankers.score_groups_with_slow(slow, text, groups)
  n = rerank.count_targets(text)
  for found in (fast, both, alone):
    np.testing.assert_array_equal(found.rows, groups)
    assert (found.scores[2, 3:] == -np.inf).all()
  for q, group in enumerate(groups):
    for i, row in enumerate(group):
      if row < 0:
        continue
      dot, h = encoded[q] @ vectors[row], scorer.table[q, row]
      u = h / n[q] ** weights.gamma
      np.testing.assert_allclose(fast.scores[q, i], dot, rtol=1e-5)
      np.testing.assert_allclose(alone.scores[q, i], h)
      np.testing.assert_allclose(
        both.scores[q, i], u + weights.beta * dot, rtol=1e-4, atol=1e-5
      )


# Time.


def test_what_is_warmed_is_what_will_be_asked():
  scorer, base = Judge(), Base(depth=12)
  slow = cast(scorers.Scorer, scorer)
  rankers.Reranker(base, slow, weights_of(), 5).warm(text_of(Q))
  assert base.warmed == Q and scorer.warmed == {(Q, 5)}
  rankers.Reranker(base, slow, weights_of(), 20).warm(text_of(Q))
  assert scorer.warmed == {(Q, 12)}  # more than there are
  rankers.Slow(slow).warm(text_of(Q))
  assert scorer.warmed == {(Q, None)}
  assert not scorer.asked  # nothing is scored twice


def test_a_ranker_that_still_compiles_gets_no_time():
  class Cold(Base):
    def __call__(self, text):
      jax.jit(lambda x: x + 1)(np.ones(3, np.float32))
      return super().__call__(text)

  with pytest.raises(RuntimeError, match=r"^7 queries to Cold: .* got 1 that"):
    rankers.time_answers(Cold(), text_of(Q))
  found, stages_ms = rankers.time_answers(Base(), text_of(Q))
  assert found.rows.shape == (Q, 12)
  assert stages_ms == {"encode": 1.0, "search": 2.0}


@pytest.fixture
def small_gallery(tmp_path):
  """A real judge of 16 visuals."""
  run, memory = test_rerank.judge()
  some = jax.tree.map(lambda x: np.resize(x, (16, *x.shape[1:])), memory)
  with memories.Writer(tmp_path / "s", {"slow": run.slow_contract}) as writer:
    writer.append(some, [f"v{i}" for i in range(16)])
  return scorers.Scorer(run, memories.Memories(tmp_path / "s"), pairs=16)


def test_slow_over_few_visuals_is_timed_without_compiling(small_gallery):
  text = synthetic.text(np.random.default_rng(0), 20)
  found, stages_ms = rankers.time_answers(rankers.Slow(small_gallery, 10), text)
  assert found.rows.shape == (20, 10) and stages_ms["score"] > 0


def test_all_candidates_re_ranked_are_timed_without_compiling(small_gallery):
  text = synthetic.text(np.random.default_rng(0), 20)
  base = rankers.Slow(small_gallery, 10)
  ranker = rankers.Reranker(base, small_gallery, weights_of(), 7)
  _, stages_ms = rankers.time_answers(ranker, text)
  assert list(stages_ms) == ["score", "rerank"]


def test_slow_says_how_far_it_is_only_if_that_takes_long(capsys, monkeypatch):
  rankers.Slow(judge())(text_of(Q))
  rankers.Reranker(Base(), judge(), weights_of(), 5)(text_of(Q))
  assert capsys.readouterr() == ("", "")
  monkeypatch.setattr(rankers, "PATIENCE", 1e-9)
  rankers.Slow(judge())(text_of(Q))
  assert f"Slow ranks all {Q * C}/{Q * C}" in capsys.readouterr().err
