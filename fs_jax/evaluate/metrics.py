"""Retrieval metrics: tie-aware ranks and intervals over images.

Everything is a fraction per query, [Q], until someone prints it: means and
intervals come last, so that two rankers can be compared query by query.
Numpy only; what was ranked, and by whom, is left to `evaluate.py`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Ranks(NamedTuple):
  """Where the best positive of each query stands, ties kept as ties."""

  above: Int[np.ndarray, " Q"]  # candidates that score more
  tied: Int[np.ndarray, " Q"]  # that score the same, itself too; 0 = miss
  hits: Int[np.ndarray, " Q"]  # positives among the tied


class Interval(NamedTuple):
  """A mean and the bounds it stays in when other images are drawn."""

  value: float
  low: float
  high: float


def ranks(
  rows: Int[np.ndarray, "Q K"],
  scores: Float[np.ndarray, "Q K"],
  positives: Int[np.ndarray, "Q P"],
) -> Ranks:
  """Ranks of the best positives in lists of candidates.

  A list shorter than the gallery says nothing of what it left out. That is
  taken to score less than the last one listed: a positive left out is a miss,
  and a tie cut by the list's end counts only its listed part. Over queries
  this is still the expected recall when the ranker cuts ties at random.

  Args:
    rows: best first; -1 pads.
    scores: larger is better; those of padding are not read.
    positives: rows that answer the query, at least one each; -1 pads.

  Raises:
    ValueError: shapes that do not fit, a score that is NaN, a list that is not
      best first or names a row twice, a query without positive.
  """
  rows, scores = np.asarray(rows), np.asarray(scores)
  listed = _listed(rows, scores)
  best_so_far = np.minimum.accumulate(np.where(listed, scores, np.inf), axis=1)
  rising = listed[:, 1:] & (scores[:, 1:] > best_so_far[:, :-1])
  _refuse(
    np.any(rising, axis=1), "scores", "each list must be best first", "sort"
  )
  return _ranks(scores, listed, _member(rows, _positives(rows, positives)))


def ranks_full(
  scores: Float[np.ndarray, "Q C"], positives: Int[np.ndarray, "Q P"]
) -> Ranks:
  """Ranks of the best positives when all of the gallery has a score.

  Args:
    scores: of every row of the gallery, larger is better.
    positives: rows that answer the query, at least one each; -1 pads.

  Raises:
    ValueError: a score that is NaN, a query without positive, a positive that
      the gallery does not have.
  """
  scores = np.asarray(scores)
  positives = _positives(scores, positives)
  gallery = scores.shape[1]
  _refuse(
    positives.max(axis=1) >= gallery,
    "positives",
    f"must be rows of a gallery of {gallery}",
    "rank the gallery that the positives index",
  )
  _refuse(np.isnan(scores).any(axis=1), "scores", "must be numbers", "find NaN")
  positive = np.zeros(scores.shape, bool)
  query, column = np.nonzero(positives >= 0)
  positive[query, positives[query, column]] = True
  return _ranks(scores, np.ones_like(positive), positive)


def recall_at(ranked: Ranks, k: int) -> Float[np.ndarray, " Q"]:
  """Probability that a positive is among the first k, over orders of ties.

  Of t tied, h of them positive, m places are left in the first k:
  1 - C(t-h, m) / C(t, m) = 1 - prod_{i<h} (t-m-i) / (t-i).
  """
  if k < 1:
    raise ValueError(f"k: must be at least 1; got {k}. raise it")
  places = np.clip(k - ranked.above, 0, ranked.tied)
  none = np.ones(ranked.above.shape)
  for i in range(ranked.hits.max(initial=0)):
    left = np.maximum(ranked.tied - i, 1)
    lost = np.maximum(ranked.tied - places - i, 0) / left
    none = np.where(i < ranked.hits, none * lost, none)
  return 1.0 - none


def expected_rank(ranked: Ranks) -> Float[np.ndarray, " Q"]:
  """Mean rank of the first positive over orders of ties, from 1; inf = miss.

  The first of h positives among t tied stands at (t + 1) / (h + 1) of them.
  """
  first = (ranked.tied + 1) / np.maximum(ranked.hits + 1, 1)
  return np.where(ranked.tied > 0, ranked.above + first, np.inf)


def median_rank(ranked: Ranks) -> float:
  """Median of `expected_rank`; inf = beyond the list, for half the queries."""
  return float(np.median(expected_rank(ranked)))


def group_recall_at_1(
  rows: Int[np.ndarray, "Q G"],
  scores: Float[np.ndarray, "Q G"],
  groups: Int[np.ndarray, "Q M"],
  positives: Int[np.ndarray, "Q P"],
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
  """Recall@1 inside each query's group of look-alikes, ties expected.

  All other rows are struck from the ranking. To judge a scorer on the groups
  themselves, score their members and pass the groups as `rows`; with a
  ranker's candidates, a positive that it did not return is a miss even when
  the rest of its group is missing too.

  Args:
    rows: any order; -1 pads.
    scores: of the rows.
    groups: rows of the group's members, a positive among them; -1 pads.
    positives: rows that answer the query; -1 pads.

  Returns:
    recall, and chance: the share of the group that is positive.

  Raises:
    ValueError: as `ranks`, but for the order; a group without positive.
  """
  rows, scores = np.asarray(rows), np.asarray(scores)
  groups = np.asarray(groups)
  listed = _listed(rows, scores)
  positives = _positives(rows, positives)
  answers = _member(groups, positives)
  _refuse(
    answers.sum(axis=1) == 0,
    "groups",
    "each must hold a positive",
    "add the query's own row",
  )
  found = _ranks(
    scores, listed & _member(rows, groups), _member(rows, positives)
  )
  return recall_at(found, 1), answers.sum(axis=1) / (groups >= 0).sum(axis=1)


def interval(
  values: Float[np.ndarray, " Q"],
  clusters: Int[np.ndarray, " Q"],
  *,
  samples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
) -> Interval:
  """Mean over queries and its percentile bootstrap interval over clusters.

  Captions of one image succeed and fail together, so images are drawn with
  replacement, each with all of its queries. Where every query agrees there is
  nothing to draw and the interval is a point, whatever the truth.

  Args:
    values: one number a query.
    clusters: equal for queries about the same image.
    samples: bootstrap draws.
    seed: equal seeds give equal intervals.
    level: share of draws inside the interval.

  Raises:
    ValueError: values that are not finite, or fewer than two clusters.
  """
  values, clusters = np.asarray(values, np.float64), np.asarray(clusters)
  if values.ndim != 1 or values.shape != clusters.shape:
    raise ValueError(
      f"clusters: one per value of [Q]; got {clusters.shape} for "
      f"{values.shape}. give both the same length"
    )
  _refuse(~np.isfinite(values), "values", "must be finite", "fix them")
  if samples < 1 or not 0 < level < 1:
    raise ValueError(
      "samples, level: must be >= 1 and inside (0, 1); got "
      f"{samples}, {level}. change them"
    )
  _, of_query, counts = np.unique(
    clusters, return_inverse=True, return_counts=True
  )
  if len(counts) < 2:
    raise ValueError(
      f"clusters: an interval needs at least 2; got {len(counts)}. "
      "evaluate more images"
    )
  sums = np.bincount(of_query, weights=values)
  rng = np.random.default_rng(seed)
  block = max(1, 2**20 // len(counts))  # bounds the memory, not the result
  means = []
  for start in range(0, samples, block):
    size = (min(block, samples - start), len(counts))
    drawn = rng.integers(len(counts), size=size)
    means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
  tail = (1 - level) / 2
  low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
  return Interval(float(values.mean()), float(low), float(high))


def paired_interval(
  a: Float[np.ndarray, " Q"],
  b: Float[np.ndarray, " Q"],
  clusters: Int[np.ndarray, " Q"],
  *,
  samples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
) -> Interval:
  """`interval` of the mean of a - b: two rankers on the same queries.

  Raises:
    ValueError: as `interval`, or values of different queries.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape:
    raise ValueError(
      f"b: must be of the queries of a, {a.shape}; got {b.shape}. "
      "evaluate both on the same queries"
    )
  return interval(a - b, clusters, samples=samples, seed=seed, level=level)


def _ranks(
  scores: np.ndarray, listed: np.ndarray, positive: np.ndarray
) -> Ranks:
  positive = positive & listed
  best = np.where(positive, scores, -np.inf).max(axis=1, initial=-np.inf)
  tied = listed & (scores == best[:, None])
  found = positive.any(axis=1)
  return Ranks(
    (listed & (scores > best[:, None])).sum(axis=1),
    np.where(found, tied.sum(axis=1), 0),  # a listed score may be -inf too
    (tied & positive).sum(axis=1),
  )


def _listed(rows: np.ndarray, scores: np.ndarray) -> Bool[np.ndarray, "Q K"]:
  """Where a list holds a row and no padding; refuses what is no list."""
  if rows.ndim != 2 or rows.shape != scores.shape:
    raise ValueError(
      f"scores: one per row of [Q, K]; got {scores.shape} for {rows.shape}. "
      "give both the same shape"
    )
  listed = rows >= 0
  _refuse(
    (listed & np.isnan(scores)).any(axis=1),
    "scores",
    "must be numbers",
    "find NaN",
  )
  ordered = np.sort(rows, axis=1)
  twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
  _refuse(
    np.any(twice, axis=1), "rows", "must differ in a list", "list each once"
  )
  return listed


def _positives(lists: np.ndarray, positives: np.ndarray) -> np.ndarray:
  positives = np.asarray(positives)
  if positives.ndim != 2 or len(positives) != len(lists):
    raise ValueError(
      f"positives: must be [Q, P] with Q = {len(lists)}; got "
      f"{positives.shape}. give a padded row a query"
    )
  _refuse(
    np.all(positives < 0, axis=1),
    "positives",
    "every query needs one",
    "leave out queries without",
  )
  return positives


def _member(rows: np.ndarray, ids: np.ndarray) -> Bool[np.ndarray, "Q K"]:
  """Whether each row is among the ids of its query; padding never is."""
  member = np.zeros(rows.shape, bool)
  for column in ids.T:  # [Q, K, P] at once may not fit
    member |= rows == column[:, None]
  return member & (rows >= 0)


def _refuse(bad: np.ndarray, what: str, rule: str, mend: str) -> None:
  """Names the first of the queries that break a rule."""
  if bad.any():
    raise ValueError(
      f"{what}: {rule}; got {int(bad.sum())} of {len(bad)} queries that break "
      f"it, first query {int(bad.argmax())}. {mend}"
    )
