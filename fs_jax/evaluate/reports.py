"""report.json: what a study measured, for programs and for people.

Values are percentages, rounded to 0.01. How they are measured is left to
`results`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

from etils import epath
from rich import table as rich_table

from fs_jax.evaluate import intervals
from fs_jax.machine import manifest, provenance
from fs_jax.machine.console import wide

KIND = "report"  # the record's kind

Values = list[float]  # value, low, high: an interval in JSON

Row = TypedDict(
  "Row",
  {
    "name": str,
    "R@1": Values,
    "R@5": Values,
    "R@10": Values,
    "hard_R@1": Values | None,  # None = the groups were not scored
    "median_rank": float | str,  # ">K" = beyond the list
    "ms_per_query": float | None,  # None = not timed
    "stages_ms": dict[str, float],
  },
)
"""A ranker's results."""

Pair = TypedDict("Pair", {"name": str, "R@1": Values})
"""The difference of two rankers: its name is "a - b"."""


class Extras(TypedDict, total=False):
  """Fields of report.json that may be missing."""

  paired: list[Pair]
  fits: dict[str, dict[str, Any]]  # `fusion.Weights` by Fast
  used_on: dict[str, list[int]]  # candidates re-ranked with these weights
  digests: dict[str, str]  # of each stage's parameters
  example: str  # a query of this gallery
  data: str  # in words
  limits: Sequence[str]  # sentences for the page


class Report(Extras):
  """The fields of report.json, beside its kind and contract."""

  gallery: int  # rows ranked
  queries: int
  rows: list[Row]
  seed: int
  seconds: dict[str, float]  # wall time by step
  device: str  # in words
  chance: NotRequired[float | None]  # hard_R@1 of a random ranker
  times_faster_than_slow: NotRequired[dict[str, float]]


def percent(interval: intervals.Interval) -> Values:
  """[value, low, high] in percent, rounded to 0.01."""
  return [round(100 * x, 2) for x in interval]


def interval(values: Values | None) -> intervals.Interval:
  """The values of a row, by name.

  Raises:
    ValueError: the row has no such values.
  """
  if values is None:
    raise ValueError(
      "report: must have this metric; got none. evaluate a split with groups "
      "of look-alikes"
    )
  return intervals.Interval(*values)


def write(
  path: epath.PathLike, contract: provenance.Contract, report: Report
) -> None:
  """Writes report.json, all of it or nothing.

  Args:
    path: the file.
    contract: the results' contract.
    report: its fields; seconds are rounded.

  Raises:
    ValueError: a number that JSON does not have, such as NaN.
  """
  seconds = {k: round(v, 3) for k, v in report["seconds"].items()}
  manifest.write_record(path, KIND, contract, {**report, "seconds": seconds})


def read(path: epath.PathLike, contract: provenance.Contract) -> Report | None:
  """Reads report.json; None if there is none with this contract."""
  return cast(Report | None, provenance.find_record(path, KIND, contract))


def table(rows: Sequence[Row], title: str | None = None) -> rich_table.Table:
  """Rows for the terminal: percentages with intervals."""
  table = rich_table.Table(title=title)
  table.add_column("ranker", no_wrap=True)
  for name in ("R@1", "R@5", "R@10", "hard_R@1", "median", "ms/query"):
    table.add_column(name, justify="right")
  for row in rows:
    median, ms = row["median_rank"], row["ms_per_query"]
    table.add_row(
      row["name"],
      _cell(row["R@1"]),
      _cell(row["R@5"]),
      _cell(row["R@10"]),
      _cell(row["hard_R@1"]),
      median if isinstance(median, str) else f"{median:g}",
      "" if ms is None else f"{ms:.2f}",
    )
  return table


def show(report: Report) -> None:
  """Prints a report for people."""
  out = wide()
  title = f"{report['queries']} queries, {report['gallery']} visuals, percent"
  out.print(table(report["rows"], title))
  chance = report.get("chance")
  if chance is not None:
    out.print(f"hard_R@1 by chance: {chance:.0f}")
  faster: Mapping[str, float] = report.get("times_faster_than_slow", {})
  listed = ", ".join(f"{name} {x:g}" for name, x in faster.items() if x != 1)
  out.print(f"times faster than slow alone: {listed}")
  for name, fit in report.get("fits", {}).items():
    used = report["used_on"].get(name, [])
    others = ", ".join(str(k) for k in used if k != fit["k"])
    if others:
      out.print(
        f"weights of Slow and {name}: fitted on {fit['k']} candidates, used on "
        f"{others} as well"
      )
  for pair in report.get("paired", ()):
    value, low, high = interval(pair["R@1"])
    out.print(f"{pair['name']}: {value:+.1f} points [{low:+.1f}, {high:+.1f}]")


def _cell(values: Values | None) -> str:
  if values is None:
    return ""
  value, low, high = interval(values)
  return f"{value:.1f} [{low:.1f}, {high:.1f}]"
