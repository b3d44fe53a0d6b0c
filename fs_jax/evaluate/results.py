"""A ranker's candidates and the ground truth -> recalls with intervals.

Any ranker will do: exact, ScaNN, re-ranked, Slow alone. Only what the ranker
returned is evaluated: a positive that it did not list is a miss, and is never
added.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fs_jax.evaluate import intervals, metrics, reports
from fs_jax.types import Candidates

KS = (1, 5, 10)  # the recalls R@k
HARD = "hard_R@1"


class Truth(NamedTuple):
  """The right answers to each query of a gallery."""

  positives: Int[np.ndarray, "Q P"]  # gallery rows, at least one; -1 pads
  clusters: Int[np.ndarray, " Q"]  # equal for captions of the same visual
  gallery_size: int  # C: rows ranked
  groups: Int[np.ndarray, "Q M"] | None = None  # look-alikes, positive included


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """How well one ranker answers; fractions, until a row is printed."""

  name: str
  intervals: dict[str, intervals.Interval]  # "R@1", "R@5", "R@10", "hard_R@1"
  per_query: dict[str, Float[np.ndarray, " Q"]]  # by the same names
  truth: Truth
  list_length: int  # K: candidates returned per query
  median_rank: float  # inf = more than K
  chance: float | None  # hard_R@1 by chance: mean positive share of a group
  ms_per_query: float | None  # wall time of all queries / Q; None = not timed
  stages_ms: dict[str, float]  # the same, by the ranker's stages

  def to_row(self) -> reports.Row:
    """The row of report.json: percent with intervals, rounded to 0.01."""
    percents = {k: reports.percent(x) for k, x in self.intervals.items()}
    beyond = math.isinf(self.median_rank)
    ms = self.ms_per_query
    return {
      "name": self.name,
      "R@1": percents["R@1"],
      "R@5": percents["R@5"],
      "R@10": percents["R@10"],
      "hard_R@1": percents.get(HARD),
      "median_rank": f">{self.list_length}" if beyond else self.median_rank,
      "ms_per_query": None if ms is None else round(ms, 3),
      "stages_ms": {k: round(v, 3) for k, v in self.stages_ms.items()},
    }


def score(
  name: str,
  candidates: Candidates,
  truth: Truth,
  *,
  ms_per_query: float | None = None,
  stages_ms: Mapping[str, float] | None = None,
  in_group: Candidates | None = None,
  bootstrap: intervals.Bootstrap = intervals.DEFAULT,
) -> Result:
  """Scores candidates against ground truth.

  Args:
    name: the row's name.
    candidates: what the ranker returned, a list per query.
    truth: the same queries' right answers.
    ms_per_query: wall time of all queries / Q; None = not timed.
    stages_ms: the same, by stage.
    in_group: the ranker's scores of every member of each query's group of
      look-alikes: hard_R@1 ranks those alone, as if the group were the gallery.
      Without it there is no hard_R@1, because a list may not hold them all.
    bootstrap: how intervals are drawn.

  Raises:
    ValueError: candidates of other queries or of another gallery than the
      truth's, too few of them for R@10, and as `metrics.ranks`.
  """
  rows, scores = np.asarray(candidates.rows), np.asarray(candidates.scores)
  _check(name, rows, truth)
  ranked = metrics.ranks(rows, scores, truth.positives)
  per_query = {f"R@{k}": metrics.recall_at(ranked, k) for k in KS}
  chance = None
  if in_group is not None and truth.groups is not None:
    per_query[HARD], shares = metrics.group_recall_at_1(
      np.asarray(in_group.rows),
      np.asarray(in_group.scores),
      truth.groups,
      truth.positives,
    )
    chance = float(shares.mean())
  return Result(
    name=name,
    intervals={
      key: intervals.interval(values, truth.clusters, bootstrap)
      for key, values in per_query.items()
    },
    per_query=per_query,
    truth=truth,
    list_length=rows.shape[1],
    median_rank=metrics.median_rank(ranked),
    chance=chance,
    ms_per_query=ms_per_query,
    stages_ms=dict(stages_ms or {}),
  )


def compare(
  a: Result,
  b: Result,
  metric: str = "R@1",
  bootstrap: intervals.Bootstrap = intervals.DEFAULT,
) -> intervals.Interval:
  """Mean of a - b over the same queries, and its interval.

  Raises:
    ValueError: results of different queries, or without the metric.
  """
  same = (
    a.truth.gallery_size == b.truth.gallery_size
    and np.array_equal(a.truth.positives, b.truth.positives)
    and np.array_equal(a.truth.clusters, b.truth.clusters)
  )
  if not same:
    raise ValueError(
      f"compare: both must answer the same queries; got {a.name!r} with other "
      f"queries than {b.name!r}. evaluate both on one truth"
    )
  for result in (a, b):
    if metric not in result.per_query:
      raise ValueError(
        f"metric: must be one of {sorted(result.per_query)} of "
        f"{result.name!r}; got {metric!r}. name one of these"
      )
  return intervals.paired_interval(
    a.per_query[metric], b.per_query[metric], a.truth.clusters, bootstrap
  )


def _check(name: str, rows: np.ndarray, truth: Truth) -> None:
  size = truth.gallery_size
  if rows.ndim != 2 or len(rows) != len(truth.positives):
    raise ValueError(
      f"{name}: needs a list a query, {len(truth.positives)}; got rows of "
      f"{rows.shape}. rank the queries of this truth"
    )
  last = max(rows.max(initial=-1), np.max(truth.positives, initial=-1))
  if last >= size:
    raise ValueError(
      f"{name}: rows and positives must be of a gallery of {size}; got row "
      f"{last}. rank and evaluate the same gallery"
    )
  if rows.shape[1] < min(max(KS), size):
    raise ValueError(
      f"{name}: R@{max(KS)} needs lists of {min(max(KS), size)}; got "
      f"{rows.shape[1]}. ask the ranker for more candidates"
    )
