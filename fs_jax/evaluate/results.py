"""A ranker and ground truth -> recalls with intervals, rows and a report.

Any ranker will do: exact, ScaNN, re-rank, Slow alone. The evaluator sees only
what it returned: a positive that is not listed is a miss, and is never added.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from rich import table as rich_table

from fs_jax.evaluate import metrics
from fs_jax.machine import manifest, provenance
from fs_jax.machine.console import wide
from fs_jax.types import Candidates

KS = (1, 5, 10)  # of R@k
HARD = "hard_R@1"
REPORT = "report"  # kind of the record


class Truth(NamedTuple):
  """What answers each query of a gallery."""

  positives: Int[np.ndarray, "Q P"]  # gallery rows, at least one; -1 pads
  clusters: Int[np.ndarray, " Q"]  # equal for captions of the same visual
  gallery: int  # C: rows ranked
  groups: Int[np.ndarray, "Q M"] | None = None  # look-alikes, positive included


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """How well one ranker answers; fractions, until a row is printed."""

  name: str
  intervals: dict[str, metrics.Interval]  # "R@1", "R@5", "R@10", "hard_R@1"
  per_query: dict[str, Float[np.ndarray, " Q"]]  # by the same names
  truth: Truth
  listed: int  # K: candidates returned a query
  median_rank: float  # inf = more than K
  chance: float | None  # of hard_R@1: mean share of a group that is positive
  ms_per_query: float | None  # wall time of all queries / Q; None = not timed
  stages_ms: dict[str, float]  # the same, by stage, as the ranker says

  def to_row(self) -> dict[str, Any]:
    """The row of report.json: percent with intervals, rounded to 0.01."""
    row: dict[str, Any] = {"name": self.name}
    for name in (*(f"R@{k}" for k in KS), HARD):
      row[name] = (
        percent(self.intervals[name]) if name in self.intervals else None
      )
    beyond = math.isinf(self.median_rank)
    row["median_rank"] = f">{self.listed}" if beyond else self.median_rank
    row["ms_per_query"] = (
      None if self.ms_per_query is None else round(self.ms_per_query, 3)
    )
    row["stages_ms"] = {k: round(v, 3) for k, v in self.stages_ms.items()}
    return row


def score(
  name: str,
  found: Candidates,
  truth: Truth,
  *,
  ms_per_query: float | None = None,
  stages_ms: Mapping[str, float] | None = None,
  in_group: Candidates | None = None,
  samples: int = 2000,
  seed: int = 0,
) -> Result:
  """Scores candidates against ground truth.

  Args:
    name: of the row.
    found: what the ranker returned, a list a query.
    truth: of the same queries.
    ms_per_query: wall time of all queries / Q; None = not timed.
    stages_ms: the same, by stage.
    in_group: the ranker's scores of every member of each query's group of
      look-alikes: hard_R@1 ranks those alone, as if the group were the gallery.
      Without it there is no hard_R@1: a list may not have looked at them all.
    samples: bootstrap draws of the intervals.
    seed: of the draws.

  Raises:
    ValueError: candidates that are not of the truth's queries and gallery, or
      too few of them for R@10, and as `metrics.ranks`.
  """
  rows, scores = np.asarray(found.rows), np.asarray(found.scores)
  _check(name, rows, truth)
  ranked = metrics.ranks(rows, scores, truth.positives)
  per_query = {f"R@{k}": metrics.recall_at(ranked, k) for k in KS}
  chance = None
  if in_group is not None and truth.groups is not None:
    per_query[HARD], by_luck = metrics.group_recall_at_1(
      np.asarray(in_group.rows),
      np.asarray(in_group.scores),
      truth.groups,
      truth.positives,
    )
    chance = float(by_luck.mean())
  return Result(
    name=name,
    intervals={
      key: metrics.interval(values, truth.clusters, samples=samples, seed=seed)
      for key, values in per_query.items()
    },
    per_query=per_query,
    truth=truth,
    listed=rows.shape[1],
    median_rank=metrics.median_rank(ranked),
    chance=chance,
    ms_per_query=ms_per_query,
    stages_ms=dict(stages_ms or {}),
  )


def compare(
  a: Result,
  b: Result,
  metric: str = "R@1",
  *,
  samples: int = 2000,
  seed: int = 0,
) -> metrics.Interval:
  """Mean of a - b over the same queries, and its interval.

  Raises:
    ValueError: results of different queries, or without the metric.
  """
  same = a.truth.gallery == b.truth.gallery and all(
    np.array_equal(getattr(a.truth, field), getattr(b.truth, field))
    for field in ("positives", "clusters")
  )
  if not same:
    raise ValueError(
      f"compare: both must answer the same queries; got other ones of "
      f"{a.name!r} than of {b.name!r}. evaluate both on one truth"
    )
  for result in (a, b):
    if metric not in result.per_query:
      raise ValueError(
        f"metric: must be one of {sorted(result.per_query)} of "
        f"{result.name!r}; got {metric!r}. name one of these"
      )
  return metrics.paired_interval(
    a.per_query[metric],
    b.per_query[metric],
    a.truth.clusters,
    samples=samples,
    seed=seed,
  )


def percent(interval: metrics.Interval) -> list[float]:
  """[value, low, high] as a report has them: percent, rounded to 0.01."""
  return [round(100 * x, 2) for x in interval]


def table(
  rows: Sequence[Mapping[str, Any]], title: str | None = None
) -> rich_table.Table:
  """Rows of `Result.to_row` for the terminal, percent with intervals."""
  names = [*(f"R@{k}" for k in KS), HARD]
  shown = rich_table.Table(title=title)
  shown.add_column("ranker", no_wrap=True)
  for name in (*names, "median", "ms/query"):
    shown.add_column(name, justify="right")
  for row in rows:
    ms = row["ms_per_query"]
    median = row["median_rank"]
    shown.add_row(
      row["name"],
      *(_cell(row[name]) for name in names),
      median if isinstance(median, str) else f"{median:g}",
      "" if ms is None else f"{ms:.2f}",
    )
  return shown


def show(report: Mapping[str, Any]) -> None:
  """Prints a report for people."""
  shown = wide()
  title = f"{report['queries']} queries, {report['gallery']} visuals, percent"
  shown.print(table(report["rows"], title))
  if report.get("chance") is not None:
    shown.print(f"hard_R@1 by chance: {report['chance']:.0f}")
  faster = report.get("times_faster_than_slow", {})
  said = ", ".join(f"{name} {x:g}" for name, x in faster.items() if x != 1)
  shown.print(f"times faster than slow alone: {said}")
  for name, fit in report.get("fits", {}).items():
    other = [k for k in report["used_on"].get(name, ()) if k != fit["k"]]
    if other:
      ks = ", ".join(map(str, other))
      shown.print(
        f"weights of Slow and {name}: fitted on {fit['k']} candidates, used on "
        f"{ks} as well"
      )
  for pair in report.get("paired", ()):
    value, low, high = pair["R@1"]
    shown.print(
      f"{pair['name']}: {value:+.1f} points [{low:+.1f}, {high:+.1f}]"
    )


def write_report(
  path: epath.PathLike,
  made_from: provenance.Contract,
  *,
  gallery: int,
  queries: int,
  rows: Sequence[Mapping[str, Any]],
  seed: int,
  seconds: Mapping[str, float],
  device: str,
  **extras: Any,
) -> None:
  """Writes report.json, all of it or nothing.

  Args:
    path: of the file.
    made_from: contract of the results.
    gallery: rows ranked.
    queries: asked.
    rows: of `Result.to_row`.
    seed: of the run.
    seconds: wall time by stage.
    device: what it ran on, in words.
    **extras: more to keep: chance, paired, fit, curves; JSON values.

  Raises:
    ValueError: a number that JSON does not have, such as NaN.
  """
  manifest.write_record(
    path,
    REPORT,
    made_from,
    {
      "gallery": gallery,
      "queries": queries,
      "rows": [dict(row) for row in rows],
      "seed": seed,
      "seconds": {k: round(v, 3) for k, v in seconds.items()},
      "device": device,
      **extras,
    },
  )


def _cell(values: Sequence[float] | None) -> str:
  if values is None:
    return ""
  value, low, high = values
  return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _check(name: str, rows: np.ndarray, truth: Truth) -> None:
  if rows.ndim != 2 or len(rows) != len(truth.positives):
    raise ValueError(
      f"{name}: needs a list a query, {len(truth.positives)}; got rows of "
      f"{rows.shape}. rank the queries of this truth"
    )
  most = max(rows.max(initial=-1), np.max(truth.positives, initial=-1))
  if most >= truth.gallery:
    raise ValueError(
      f"{name}: rows and positives must be of a gallery of {truth.gallery}; "
      f"got row {most}. rank and judge the same gallery"
    )
  if rows.shape[1] < min(max(KS), truth.gallery):
    raise ValueError(
      f"{name}: R@{max(KS)} needs lists of {min(max(KS), truth.gallery)}; got "
      f"{rows.shape[1]}. ask the ranker for more"
    )
