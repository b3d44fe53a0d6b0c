"""What a report says, as HTML: its tables, plots and sentences.

Most functions make the inside of one section of the page, "" where the report
has nothing for it. Everything that came from data is escaped. Pictures are
left to `page`.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fs_jax.evaluate.page import svg

# A table that is wider than its page scrolls, by keyboard too.
_WIDE = '<div class="wide" role="group" aria-label="table" tabindex="0">'


def summary(report: Mapping[str, Any]) -> str:
  """What was asked of whom, in one sentence."""
  return (
    f"{report['queries']:,} text queries, each asked for the one picture it "
    f"was written for among {report['gallery']:,}: a dual encoder (Fast) finds "
    "candidates, a captioner (Slow) orders them anew by how well each "
    "explains the query, and what Slow knows is taught back to Fast."
  )


def table(report: Mapping[str, Any]) -> str:
  """A row for every ranker: recalls with intervals, and times."""
  faster = report.get("times_faster_than_slow") or {}
  chance = report.get("chance")
  luck = "" if chance is None else f"<small>chance {chance:.1f}</small>"
  heads = ["ranker", "R@1", "R@5", "R@10", f"hard R@1{luck}", "ms a query"]
  heads += ["times faster<small>than Slow alone</small>"] if faster else []
  head = "".join(f'<th scope="col">{one}</th>' for one in heads)
  lines = []
  for row in report["rows"]:
    name = row["name"]
    stages = "".join(
      f"<small>{html.escape(stage)} {ms:.3g}</small>"
      for stage, ms in (row.get("stages_ms") or {}).items()
    )
    cells = [_interval(row.get(k)) for k in ("R@1", "R@5", "R@10", "hard_R@1")]
    cells.append(f"{_ms(row.get('ms_per_query'))}{stages}")
    if faster:
      cells.append(f"{faster[name]:g}" if name in faster else "")
    lines.append(
      f'<tr><th scope="row">{html.escape(name)}'
      f"<small>{html.escape(_meaning(name))}</small></th>"
      + "".join(f"<td>{cell}</td>" for cell in cells)
      + "</tr>"
    )
  hard = (
    ""
    if all(r.get("hard_R@1") is None for r in report["rows"])
    else (" Hard R@1: against the picture's look-alikes alone.")
  )
  return (
    f"{_WIDE}<table><caption>R@k: percent of queries "
    "whose picture is among the first k, with 95 % intervals over queries."
    f"{hard} Milliseconds are wall time of all queries together, divided by "
    "their number.</caption>"
    f"<thead><tr>{head}</tr>"
    f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
  )


def trade(report: Mapping[str, Any]) -> str:
  """R@1 against the time of a query."""
  points = [
    svg.Point(row["name"], row["ms_per_query"], *row["R@1"])
    for row in report["rows"]
    if row.get("ms_per_query") and row.get("R@1")
  ]
  if not points:
    return ""
  joined = [p.name for p in points if p.name.startswith("rerank@")]
  said = "; ".join(f"{p.name} {p.y:g} at {p.x:g} ms" for p in points)
  plot = svg.scatter(
    points,
    f"R@1 in percent against milliseconds a query: {said}",
    "ms a query, logarithmic",
    "R@1, percent",
    joined,
  )
  note = "Whiskers are 95 % intervals over queries."
  if len(joined) > 1:
    note += " Dashed: more candidates for Slow to order."
  return f'<figure class="plot">{plot}<figcaption>{note}</figcaption></figure>'


def paired(report: Mapping[str, Any]) -> str:
  """Each comparison, in words that say what is not shown too."""
  lines = []
  for pair in report.get("paired") or ():
    first, _, second = pair["name"].partition(" - ")
    value, low, high = pair["R@1"]
    a, b = (f"<b>{html.escape(name)}</b>" for name in (first, second))
    range_ = f"95 % interval {_signed(low)} to {_signed(high)}"
    if low > 0 or high < 0:
      way = "above" if value > 0 else "below"
      said = f"R@1 of {a} is {abs(value):.1f} points {way} {b} ({range_})."
    else:
      said = (
        f"No difference is shown between {a} and {b}: {_signed(value)} points "
        f"({range_})."
      )
    lines.append(f"<li>{said}</li>")
  return f"<ul>{''.join(lines)}</ul>" if lines else ""


def training(
  curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
  """Loss and validation of each stage, step by step."""
  wanted = (("train", "loss", 1), ("validation", "R@1", 100))
  figures = []
  for stage, lines in curves.items():
    for split, key, scale in wanted:
      line = [
        (float(one["step"]), scale * float(one[key]))
        for one in lines
        if one.get("split") == split
        and isinstance(one.get(key), int | float)
        and math.isfinite(one[key])
      ]
      if not line:
        continue
      shown = "loss" if key == "loss" else "R@1 of a sample, percent"
      said = f"{stage}: {split} {shown}, last {line[-1][1]:.3g}"
      plot = svg.curve(line, said, "step", key)
      figures.append(
        f"<figure>{plot}<figcaption>{html.escape(said)}</figcaption></figure>"
      )
  return f'<div class="curves">{"".join(figures)}</div>' if figures else ""


def times(report: Mapping[str, Any]) -> str:
  """What ran on what, and the seconds of each part."""
  seconds = report.get("seconds") or {}
  device, seed = report.get("device", "not recorded"), report.get("seed")
  most = max([*seconds.values(), 1e-9])
  lines = "".join(
    f'<tr><th scope="row">{html.escape(name)}</th><td>{value:,.1f}</td>'
    '<td class="bar" aria-hidden="true">'
    f'<span style="width:{100 * value / most:.1f}%"></span></td></tr>'
    for name, value in seconds.items()
  )
  total = (
    f'<tr><th scope="row">all</th><td>{sum(seconds.values()):,.1f}</td>'
    "<td></td></tr>"
  )
  table = (
    f"{_WIDE}<table><caption>Wall time of each part, seconds</caption>"
    f"<tbody>{lines}{total}</tbody></table></div>"
  )
  said = [f"Device: {device}.", f"Seed: {seed}."]
  if report.get("data"):
    said.append(f"Data: {report['data']}.")
  return f"<p>{html.escape(' '.join(said))}</p>" + (table if seconds else "")


def limits(report: Mapping[str, Any]) -> str:
  """What the numbers do not say; the report may add to it."""
  limits = (
    f"One gallery of {report['gallery']:,} pictures and one seed: intervals "
    "are over queries, and say nothing of other seeds, data or sizes.",
    "A query counts one picture as right, the one it was written for, even "
    "where another fits its words.",
    "Times are of many queries at once on the device named above; one query "
    "alone, or another device, takes another time.",
    "Where attention lies is not why a score is what it is.",
    *(report.get("limits") or ()),
  )
  lines = "".join(f"<li>{html.escape(limit)}</li>" for limit in limits)
  return f"<ul>{lines}</ul>"


def minus(value: float, digits: str) -> str:
  """A number with a minus sign instead of a hyphen."""
  return f"{value:{digits}}".replace("-", "−")


def _meaning(name: str) -> str:
  """What a ranker does, for the names that a study gives."""
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


def _interval(values: Sequence[float] | None) -> str:
  if values is None:
    return ""
  value, low, high = values
  return f"{value:.1f}<small>{low:.1f} to {high:.1f}</small>"


def _ms(value: float | None) -> str:
  return "" if value is None else f"{value:.3g}"


def _signed(value: float) -> str:
  return minus(value, "+.1f")
