"""The sections of the page as HTML: tables, plots and sentences of a report.

Most functions return the inside of one section, or "" if the report has nothing
for it. Everything that comes from data is escaped. Pictures are left to `page`.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fs_jax.evaluate import reports
from fs_jax.evaluate.page import svg

# A table that is wider than its page scrolls, by keyboard too.
_WIDE = '<div class="wide" role="group" aria-label="table" tabindex="0">'


def summary(report: reports.Report) -> str:
  """The experiment in one sentence."""
  return (
    f"{report['queries']:,} text queries, each for the one picture it was "
    f"written for among {report['gallery']:,}: a dual encoder (Fast) finds "
    "candidates, a captioner (Slow) re-ranks them by how well each explains "
    "the query, and Fast is trained on what Slow knows."
  )


def table(report: reports.Report) -> str:
  """A row for every ranker: recalls with intervals, and times."""
  faster = report.get("times_faster_than_slow") or {}
  chance = report.get("chance")
  luck = "" if chance is None else f"<small>chance {chance:.1f}</small>"
  heads = ["ranker", "R@1", "R@5", "R@10", f"hard R@1{luck}", "ms a query"]
  if faster:
    heads.append("times faster<small>than Slow alone</small>")
  head = "".join(f'<th scope="col">{text}</th>' for text in heads)
  lines = []
  for row in report["rows"]:
    name = row["name"]
    stages = "".join(
      f"<small>{html.escape(stage)} {ms:.3g}</small>"
      for stage, ms in (row.get("stages_ms") or {}).items()
    )
    cells = [
      _interval(row.get("R@1")),
      _interval(row.get("R@5")),
      _interval(row.get("R@10")),
      _interval(row.get("hard_R@1")),
      f"{_ms(row.get('ms_per_query'))}{stages}",
    ]
    if faster:
      cells.append(f"{faster[name]:g}" if name in faster else "")
    lines.append(
      f'<tr><th scope="row">{html.escape(name)}'
      f"<small>{html.escape(_meaning(name))}</small></th>"
      + "".join(f"<td>{cell}</td>" for cell in cells)
      + "</tr>"
    )
  hard = ""
  if any(row.get("hard_R@1") is not None for row in report["rows"]):
    hard = " Hard R@1: against the picture's look-alikes alone."
  return (
    f"{_WIDE}<table><caption>R@k: percent of queries "
    "whose picture is among the first k, with 95 % intervals over queries."
    f"{hard} Milliseconds are wall time of all queries together, divided by "
    "their number.</caption>"
    f"<thead><tr>{head}</tr>"
    f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
  )


def trade(report: reports.Report) -> str:
  """R@1 against the time of a query."""
  points = [
    svg.Point(row["name"], ms, *reports.interval(row["R@1"]))
    for row in report["rows"]
    if (ms := row.get("ms_per_query")) and row.get("R@1")
  ]
  if not points:
    return ""
  joined = [p.name for p in points if p.name.startswith("rerank@")]
  listed = "; ".join(f"{p.name} {p.y:g} at {p.x:g} ms" for p in points)
  plot = svg.scatter(
    points,
    f"R@1 in percent against milliseconds a query: {listed}",
    "ms a query, logarithmic",
    "R@1, percent",
    joined,
  )
  note = "Whiskers are 95 % intervals over queries."
  if len(joined) > 1:
    note += " Dashed: more candidates for Slow to order."
  return f'<figure class="plot">{plot}<figcaption>{note}</figcaption></figure>'


def paired(report: reports.Report) -> str:
  """Each comparison as a sentence, also where no difference is shown."""
  lines = []
  for pair in report.get("paired") or ():
    first, _, second = pair["name"].partition(" - ")
    value, low, high = reports.interval(pair["R@1"])
    a, b = (f"<b>{html.escape(name)}</b>" for name in (first, second))
    bounds = f"95 % interval {_signed(low)} to {_signed(high)}"
    if low > 0 or high < 0:
      side = "above" if value > 0 else "below"
      text = f"R@1 of {a} is {abs(value):.1f} points {side} {b} ({bounds})."
    else:
      text = (
        f"No difference is shown between {a} and {b}: {_signed(value)} points "
        f"({bounds})."
      )
    lines.append(f"<li>{text}</li>")
  return f"<ul>{''.join(lines)}</ul>" if lines else ""


def training(
  curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
  """Loss and validation of each stage, step by step."""
  plots = (
    ("train", "loss", 1, "loss"),
    ("validation", "R@1", 100, "R@1 of a sample, percent"),
  )
  figures = []
  for stage, lines in curves.items():
    for split, key, scale, name in plots:
      points = [
        (float(line["step"]), scale * float(line[key]))
        for line in lines
        if line.get("split") == split
        and isinstance(line.get(key), int | float)
        and math.isfinite(line[key])
      ]
      if not points:
        continue
      caption = f"{stage}: {split} {name}, last {points[-1][1]:.3g}"
      plot = svg.curve(points, caption, "step", key)
      figures.append(
        f"<figure>{plot}<figcaption>{html.escape(caption)}</figcaption>"
        "</figure>"
      )
  return f'<div class="curves">{"".join(figures)}</div>' if figures else ""


def times(report: reports.Report) -> str:
  """The device, and the seconds of each step."""
  seconds = report.get("seconds") or {}
  device, seed = report.get("device", "not recorded"), report.get("seed")
  longest = max([*seconds.values(), 1e-9])
  lines = "".join(
    f'<tr><th scope="row">{html.escape(name)}</th><td>{value:,.1f}</td>'
    '<td class="bar" aria-hidden="true">'
    f'<span style="width:{100 * value / longest:.1f}%"></span></td></tr>'
    for name, value in seconds.items()
  )
  total = (
    f'<tr><th scope="row">all</th><td>{sum(seconds.values()):,.1f}</td>'
    "<td></td></tr>"
  )
  table = (
    f"{_WIDE}<table><caption>Wall time of each step, seconds</caption>"
    f"<tbody>{lines}{total}</tbody></table></div>"
  )
  text = f"Device: {device}. Seed: {seed}."
  if report.get("data"):
    text += f" Data: {report['data']}."
  return f"<p>{html.escape(text)}</p>" + (table if seconds else "")


def limits(report: reports.Report) -> str:
  """The limits of the numbers; the report may add to them."""
  limits = (
    f"One gallery of {report['gallery']:,} pictures and one seed: intervals "
    "are over queries, and do not cover other seeds, data or sizes.",
    "A query counts one picture as right, the one it was written for, even "
    "where another fits its words.",
    "Times are of many queries at once on the device named above; one query "
    "alone, or another device, takes a different time.",
    "Attention shows where Slow looks, not why a score is what it is.",
    *(report.get("limits") or ()),
  )
  lines = "".join(f"<li>{html.escape(limit)}</li>" for limit in limits)
  return f"<ul>{lines}</ul>"


def minus(value: float, digits: str) -> str:
  """A number with a minus sign instead of a hyphen."""
  return f"{value:{digits}}".replace("-", "−")


def _meaning(name: str) -> str:
  """Describes a ranker, by the name that a study gives it."""
  known = {
    "fast": "one vector a text and a picture, nearest neighbours",
    "fast_longer": "the same, trained as long as it and distilling together",
    "fast_distilled": "the same model, taught by Slow",
    "slow": "the captioner scores every picture: no Fast at all",
  }
  if name in known:
    return known[name]
  match = re.fullmatch(r"(fast_)?rerank@(\d+)", name)
  if not match:
    return ""
  whose = "Fast" if match[1] else "the distilled Fast"
  return f"{whose} finds, Slow orders the first {match[2]}"


def _interval(values: reports.Values | None) -> str:
  if values is None:
    return ""
  value, low, high = reports.interval(values)
  return f"{value:.1f}<small>{low:.1f} to {high:.1f}</small>"


def _ms(value: float | None) -> str:
  return "" if value is None else f"{value:.3g}"


def _signed(value: float) -> str:
  return minus(value, "+.1f")
