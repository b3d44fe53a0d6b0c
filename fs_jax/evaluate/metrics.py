"""Retrieval metrics: tie-aware ranks and recalls.

Everything is a fraction per query, [Q]: means and intervals come last, so that
two rankers can be compared query by query. NumPy only. Intervals are left to
`intervals`, and which ranker answered which queries to `results`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_NUMBERS = "must be numbers"
_NO_NAN = "rank with scores that are not NaN"


class Ranks(NamedTuple):
  """The place of each query's best positive, with ties kept as ties."""

  above: Int[np.ndarray, " Q"]  # candidates that score more
  tied: Int[np.ndarray, " Q"]  # that score the same, itself included; 0 = miss
  hits: Int[np.ndarray, " Q"]  # positives among the tied


def ranks(
  rows: Int[np.ndarray, "Q K"],
  scores: Float[np.ndarray, "Q K"],
  positives: Int[np.ndarray, "Q P"],
) -> Ranks:
  """Ranks of the best positives in lists of candidates.

  Rows that a list leaves out are taken to score less than its last one: a
  positive that is left out is a miss, and of a tie that the list's end cuts,
  only the listed part counts. Averaged over queries this is still the expected
  recall if the ranker cuts ties at random.

  Args:
    rows: best first; -1 pads.
    scores: larger is better; the scores of padding are not read.
    positives: rows that answer the query, at least one each; -1 pads.

  Raises:
    ValueError: shapes that do not match, a score that is NaN, a list that is
      not best first or names a row twice, a query without a positive.
  """
  rows, scores = np.asarray(rows), np.asarray(scores)
  listed = _listed(rows, scores)
  best_so_far = np.minimum.accumulate(np.where(listed, scores, np.inf), axis=1)
  rising = listed[:, 1:] & (scores[:, 1:] > best_so_far[:, :-1])
  _refuse(
    np.any(rising, axis=1),
    "scores",
    "each list must be best first",
    "sort each list by falling score",
  )
  return _ranks(scores, listed, _member(rows, _positives(rows, positives)))


def ranks_full(
  scores: Float[np.ndarray, "Q C"], positives: Int[np.ndarray, "Q P"]
) -> Ranks:
  """Ranks of the best positives when the whole gallery is scored.

  Args:
    scores: every gallery row's score, larger is better.
    positives: rows that answer the query, at least one each; -1 pads.

  Raises:
    ValueError: a score that is NaN, a query without a positive, a positive
      outside the gallery.
  """
  scores = np.asarray(scores)
  positives = _positives(scores, positives)
  gallery_size = scores.shape[1]
  _refuse(
    positives.max(axis=1) >= gallery_size,
    "positives",
    f"must be rows of a gallery of {gallery_size}",
    "rank the gallery that the positives index",
  )
  _refuse(np.isnan(scores).any(axis=1), "scores", _NUMBERS, _NO_NAN)
  positive = np.zeros(scores.shape, bool)
  query, column = np.nonzero(positives >= 0)
  positive[query, positives[query, column]] = True
  return _ranks(scores, np.ones_like(positive), positive)


def recall_at(ranked: Ranks, k: int) -> Float[np.ndarray, " Q"]:
  """Probability that a positive is among the first k, over orders of ties.

  With t tied, h of them positive, and m places left in the first k:
  1 - C(t-h, m) / C(t, m) = 1 - prod_{i<h} (t-m-i) / (t-i).
  """
  if k < 1:
    raise ValueError(f"k: must be at least 1; got {k}. pass k >= 1")
  places = np.clip(k - ranked.above, 0, ranked.tied)
  none = np.ones(ranked.above.shape)
  for i in range(ranked.hits.max(initial=0)):
    left = np.maximum(ranked.tied - i, 1)
    lost = np.maximum(ranked.tied - places - i, 0) / left
    none = np.where(i < ranked.hits, none * lost, none)
  return 1.0 - none


def expected_rank(ranked: Ranks) -> Float[np.ndarray, " Q"]:
  """Mean rank of the first positive over orders of ties, from 1; inf = miss.

  The first of h positives among t tied has the mean place (t + 1) / (h + 1).
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
  """Recall@1 inside each query's group of look-alikes, expected over ties.

  All other rows are removed from the ranking. To evaluate a scorer on the
  groups themselves, score their members and pass the groups as `rows`. With a
  ranker's candidates, a positive that it did not return is a miss, even if the
  rest of its group is missing too.

  Args:
    rows: any order; -1 pads.
    scores: the rows' scores.
    groups: rows of the group's members, a positive among them; -1 pads.
    positives: rows that answer the query; -1 pads.

  Returns:
    The recall, and its chance level: the share of the group that is positive.

  Raises:
    ValueError: as `ranks`, except for the order; a group without a positive.
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
  ranked = _ranks(
    scores, listed & _member(rows, groups), _member(rows, positives)
  )
  return recall_at(ranked, 1), answers.sum(axis=1) / (groups >= 0).sum(axis=1)


def _ranks(
  scores: np.ndarray, listed: np.ndarray, positive: np.ndarray
) -> Ranks:
  positive = positive & listed
  best = np.where(positive, scores, -np.inf).max(axis=1, initial=-np.inf)
  tied = listed & (scores == best[:, None])
  hit = positive.any(axis=1)
  return Ranks(
    (listed & (scores > best[:, None])).sum(axis=1),
    np.where(hit, tied.sum(axis=1), 0),  # a listed score may be -inf too
    (tied & positive).sum(axis=1),
  )


def _listed(rows: np.ndarray, scores: np.ndarray) -> Bool[np.ndarray, "Q K"]:
  """Masks padding; refuses rows and scores that are not lists."""
  if rows.ndim != 2 or rows.shape != scores.shape:
    raise ValueError(
      f"scores: one per row of [Q, K]; got {scores.shape} for {rows.shape}. "
      "give both the same shape"
    )
  listed = rows >= 0
  _refuse((listed & np.isnan(scores)).any(axis=1), "scores", _NUMBERS, _NO_NAN)
  ordered = np.sort(rows, axis=1)
  twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
  _refuse(
    np.any(twice, axis=1),
    "rows",
    "must differ in a list",
    "list each row once",
  )
  return listed


def _positives(lists: np.ndarray, positives: np.ndarray) -> np.ndarray:
  positives = np.asarray(positives)
  if positives.ndim != 2 or len(positives) != len(lists):
    raise ValueError(
      f"positives: must be [Q, P] with Q = {len(lists)}; got "
      f"{positives.shape}. give each query a row, padded with -1"
    )
  _refuse(
    np.all(positives < 0, axis=1),
    "positives",
    "every query needs one",
    "leave out the queries without one",
  )
  return positives


def _member(rows: np.ndarray, ids: np.ndarray) -> Bool[np.ndarray, "Q K"]:
  """Whether each row is among the ids of its query; padding never is."""
  member = np.zeros(rows.shape, bool)
  for column in ids.T:  # [Q, K, P] at once may not fit
    member |= rows == column[:, None]
  return member & (rows >= 0)


def _refuse(bad: np.ndarray, what: str, rule: str, mend: str) -> None:
  """Raises if any query breaks a rule; names the first."""
  if bad.any():
    raise ValueError(
      f"{what}: {rule}; got {int(bad.sum())} of {len(bad)} queries that break "
      f"it, first query {int(bad.argmax())}. {mend}"
    )
