import json

import numpy as np
import pytest

from fs_jax.evaluate import intervals, metrics, results
from fs_jax.types import Candidates


def truth_of(images, captions=2, *, groups=None):
  """A gallery of `images`, each described by `captions` queries."""
  own = np.repeat(np.arange(images, dtype=np.int32), captions)
  return results.Truth(own[:, None], own, images, groups)


def top(scores, k):
  rows = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)
  return Candidates(rows, np.take_along_axis(scores, rows, axis=1))


def noisy(truth, noise, seed=0):
  """Scores [Q, C] that find the positive more or less often."""
  rng = np.random.default_rng(seed)
  scores = noise * rng.normal(size=(len(truth.positives), truth.gallery_size))
  scores[np.arange(len(scores)), truth.positives[:, 0]] += 1
  return scores.astype(np.float32)


def test_score_is_the_mean_of_metrics():
  groups = np.arange(40)[:, None] // 8 * 4 + np.arange(4)  # 4 neighbours
  truth = truth_of(20, groups=groups)
  scores = noisy(truth, 0.7)
  own = np.take_along_axis(scores, groups, axis=1)
  inside = Candidates(groups, own)
  result = results.score("fast", top(scores, 20), truth, in_group=inside)
  ranked = metrics.ranks_full(scores, truth.positives)
  for k in (1, 5, 10):
    per_query = metrics.recall_at(ranked, k)
    np.testing.assert_array_equal(result.per_query[f"R@{k}"], per_query)
    assert result.intervals[f"R@{k}"] == intervals.interval(
      per_query, truth.clusters
    )
  hard, _ = metrics.group_recall_at_1(groups, own, groups, truth.positives)
  np.testing.assert_array_equal(result.per_query["hard_R@1"], hard)
  assert result.chance == 0.25
  assert result.median_rank == metrics.median_rank(ranked)


def test_positive_is_never_added():
  truth = truth_of(
    30, groups=np.repeat(np.arange(30), 2)[:, None] // 2 * 2 + np.arange(2)
  )
  scores = noisy(truth, 0.1)
  scores[np.arange(60), truth.positives[:, 0]] = -9  # last of all
  result = results.score("blind", top(scores, 12), truth)
  assert "hard_R@1" not in result.intervals  # nobody scored the groups
  for name in ("R@1", "R@5", "R@10"):
    assert result.intervals[name] == (0, 0, 0)
  assert result.to_row()["median_rank"] == ">12"


def test_constant_scores_give_chance_and_not_the_order_of_rows():
  truth = truth_of(40, groups=np.arange(80)[:, None] // 8 * 4 + np.arange(4))
  found = top(np.zeros((80, 40), np.float32), 40)
  inside = Candidates(truth.groups, np.zeros((80, 4), np.float32))
  result = results.score("constant", found, truth, in_group=inside)
  for k in (1, 5, 10):
    np.testing.assert_allclose(result.intervals[f"R@{k}"], k / 40)
  np.testing.assert_allclose(result.intervals["hard_R@1"], result.chance)
  assert result.median_rank == 20.5


def test_row_is_json_in_percent():
  truth = truth_of(30)
  found = top(noisy(truth, 0.6), 30)
  row = results.score(
    "slow", found, truth, ms_per_query=1.23456, stages_ms={"search": 0.51111}
  ).to_row()
  assert json.loads(json.dumps(row, allow_nan=False)) == row
  value, low, high = row["R@1"]
  assert 0 < low <= value <= high < 100
  assert value == round(
    100 * np.mean(metrics.recall_at(metrics.ranks(*found, truth.positives), 1)),
    2,
  )
  assert row["hard_R@1"] is None
  assert row["ms_per_query"] == 1.235
  assert row["stages_ms"] == {"search": 0.511}


def test_compare_is_paired():
  truth = truth_of(50)
  b = noisy(truth, 0.8)
  a = b.copy()
  rows = np.arange(0, 100, 7)
  a[rows, truth.positives[rows, 0]] += 9
  better = results.score("a", top(a, 50), truth)
  worse = results.score("b", top(b, 50), truth)
  found = results.compare(better, worse)
  gain = better.intervals["R@1"].value - worse.intervals["R@1"].value
  np.testing.assert_allclose(found.value, gain)
  assert found.low > 0
  assert results.compare(better, worse) == found
  same = results.compare(better, better, "R@10")
  assert same == (0, 0, 0)
  with pytest.raises(ValueError, match="one of"):
    results.compare(better, worse, "hard_R@1")
  other = results.score("c", top(a, 50), truth._replace(gallery_size=51))
  with pytest.raises(ValueError, match="same queries"):
    results.compare(better, other)


@pytest.mark.parametrize(
  ("queries", "k", "gallery", "message"),
  [
    (39, 20, 20, "a list a query, 40"),
    (40, 20, 19, "gallery of 19"),
    (40, 9, 20, "needs lists of 10"),
  ],
)
def test_score_refuses(queries, k, gallery, message):
  truth = truth_of(20)
  found = top(noisy(truth, 1.0)[:queries], k)
  with pytest.raises(ValueError, match=message):
    results.score("x", found, truth._replace(gallery_size=gallery))


def test_a_small_gallery_needs_no_ten_candidates():
  truth = truth_of(4)
  result = results.score("x", top(noisy(truth, 1.0), 4), truth)
  assert result.intervals["R@10"] == (1, 1, 1)
