import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs_jax.evaluate import metrics


def orders_of(scores):
  """Every ranking of the candidates that the scores allow."""
  by_score = [
    [i for i, s in enumerate(scores) if s == value]
    for value in sorted(set(scores), reverse=True)
  ]
  for parts in itertools.product(*map(itertools.permutations, by_score)):
    yield [i for part in parts for i in part]


def slow_recall(scores, positives, k):
  hits = [any(i in positives for i in order[:k]) for order in orders_of(scores)]
  return np.mean(hits)


def slow_rank(scores, positives):
  return np.mean(
    [min(order.index(p) for p in positives) + 1 for order in orders_of(scores)]
  )


def padded(lists, width):
  return np.array([[*xs, *[-1] * (width - len(xs))] for xs in lists], np.int32)


def sorted_list(scores):
  """[Q, C] -> rows and scores, best first."""
  order = np.argsort(-scores, axis=1, kind="stable").astype(np.int32)
  return order, np.take_along_axis(scores, order, axis=1)


cases = st.integers(1, 5).flatmap(
  lambda c: st.tuples(
    st.lists(st.integers(0, 2), min_size=c, max_size=c),
    st.sets(st.integers(0, c - 1), min_size=1),
  )
)


@settings(max_examples=150, deadline=None)
@given(cases)
def test_ranks_are_the_mean_over_orders_of_ties(case):
  scores, positives = case
  matrix = np.array([scores], np.float32)
  wanted = padded([sorted(positives)], 6)
  full = metrics.ranks_full(matrix, wanted)
  listed = metrics.ranks(*sorted_list(matrix), wanted)
  for ranked in (full, listed):
    for k in range(1, len(scores) + 2):
      np.testing.assert_allclose(
        metrics.recall_at(ranked, k),
        [slow_recall(scores, positives, k)],
        atol=1e-12,
      )
    np.testing.assert_allclose(
      metrics.expected_rank(ranked), [slow_rank(scores, positives)]
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_of_tied_rows_and_of_positives_is_no_matter(seed):
  rng = np.random.default_rng(seed)
  scores = rng.integers(3, size=(4, 7)).astype(np.float32)
  positives = np.array([rng.permutation(7)[:3] for _ in range(4)], np.int32)
  moved = rng.permutation(7)
  there = np.argsort(moved)
  a = metrics.ranks_full(scores, positives)
  b = metrics.ranks_full(scores[:, moved], there[positives][:, ::-1])
  for x, y in zip(a, b, strict=True):
    np.testing.assert_array_equal(x, y)


def test_constant_scores_give_chance():
  scores = np.zeros((3, 20), np.float32)
  ranked = metrics.ranks_full(scores, np.array([[0], [7], [19]], np.int32))
  for k in (1, 5, 20):
    np.testing.assert_allclose(metrics.recall_at(ranked, k), k / 20)
  assert metrics.median_rank(ranked) == 10.5


def test_lists_cut_at_random_among_ties_give_the_full_recall():
  rng = np.random.default_rng(0)
  rows = np.array([rng.permutation(10)[:4] for _ in range(20000)], np.int32)
  positives = np.zeros((20000, 1), np.int32)
  ranked = metrics.ranks(rows, np.zeros(rows.shape), positives)
  for k in (1, 3):
    mean = metrics.recall_at(ranked, k).mean()
    np.testing.assert_allclose(mean, k / 10, atol=0.01)


def test_not_listed_is_a_miss_at_any_k():
  rows = np.array([[1, 2, -1], [0, -1, -1], [-1, -1, -1]], np.int32)
  scores = np.where(rows < 0, -np.inf, 1.0)
  ranked = metrics.ranks(rows, scores, np.zeros((3, 1), np.int32))
  np.testing.assert_array_equal(metrics.recall_at(ranked, 99), [0, 1, 0])
  np.testing.assert_array_equal(
    metrics.expected_rank(ranked), [np.inf, 1, np.inf]
  )
  assert metrics.median_rank(ranked) == np.inf


def test_a_listed_score_may_be_minus_infinity():
  rows = np.array([[3, 1, -1]], np.int32)
  scores = np.array([[0.0, -np.inf, -np.inf]])
  ranked = metrics.ranks(rows, scores, np.array([[1]]))
  assert metrics.expected_rank(ranked) == [2.0]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"scores": [[1.0, 2.0]]}, "best first"),
    ({"scores": [[np.nan, 1.0]]}, "numbers"),
    ({"scores": [[1.0]]}, "one per row"),
    ({"rows": [[4, 4]]}, "differ"),
    ({"positives": [[-1]]}, "every query needs one"),
    ({"positives": [[0], [1]]}, "Q = 1"),
  ],
)
def test_ranks_refuse(change, message):
  given_ = {"rows": [[4, 2]], "scores": [[2.0, 1.0]], "positives": [[4]]}
  given_ = {k: np.array(v) for k, v in {**given_, **change}.items()}
  with pytest.raises(ValueError, match=message):
    metrics.ranks(**given_)


def test_ranks_refuse_disorder_across_padding():
  with pytest.raises(ValueError, match="first query 1"):
    metrics.ranks(
      np.array([[1, -1, 2], [1, -1, 2]]),
      np.array([[3.0, 0.0, 2.0], [1.0, 0.0, 2.0]]),
      np.array([[1], [1]]),
    )


def test_ranks_full_refuse():
  with pytest.raises(ValueError, match="gallery of 2"):
    metrics.ranks_full(np.zeros((1, 2)), np.array([[2]]))
  with pytest.raises(ValueError, match="numbers"):
    metrics.ranks_full(np.array([[np.nan, 1]]), np.array([[1]]))
  with pytest.raises(ValueError, match="at least 1"):
    metrics.recall_at(metrics.ranks_full(np.zeros((1, 2)), [[1]]), 0)


def test_group_recall_ranks_the_group_only():
  groups = np.array([[5, 6, 7], [5, 6, -1], [5, 6, 7]], np.int32)
  positives = np.array([[5, -1], [6, -1], [5, 7]], np.int32)
  scores = np.array([[2.0, 1, 0], [3, 3, 9], [1, 2, 2]])  # padding scores 9
  values, chance = metrics.group_recall_at_1(groups, scores, groups, positives)
  np.testing.assert_allclose(values, [1, 0.5, 0.5])
  np.testing.assert_allclose(chance, [1 / 3, 1 / 2, 2 / 3])


def test_group_recall_of_candidates_never_adds_the_positive():
  rows = np.array([[9, 6, 5], [9, 8, 6], [9, 8, 4]], np.int32)
  scores = np.array([[3.0, 1, 1]] * 3)
  groups = np.array([[5, 6, 7]] * 3)
  positives = np.array([[5]] * 3)
  values, _ = metrics.group_recall_at_1(rows, scores, groups, positives)
  np.testing.assert_allclose(values, [0.5, 0, 0])
  with pytest.raises(ValueError, match="hold a positive"):
    metrics.group_recall_at_1(rows, scores, groups, np.array([[1]] * 3))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_group_recall_is_full_recall_when_the_group_is_all(seed):
  rng = np.random.default_rng(seed)
  scores = rng.integers(3, size=(5, 6)).astype(np.float32)
  everything = np.tile(np.arange(6), (5, 1))
  positives = rng.integers(6, size=(5, 2))
  values, _ = metrics.group_recall_at_1(
    everything, scores, everything, positives
  )
  full = metrics.recall_at(metrics.ranks_full(scores, positives), 1)
  np.testing.assert_array_equal(values, full)
