"""What a study measured, as one page to look at; and sheets of answers.

`index.html` needs nothing beside it: pictures and plots are inside, there is no
script. Everything that came from data is escaped.
"""

import base64
import html
import io
import math
import re
import string
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from fs_jax import attention, files, plots, types
from fs_jax.data import tokenizer as tokenizers

SHOWN = 5  # answers of each list, side by side
EXTREMES = 3  # queries that re-ranking hurt most, and as many it helped most
SIDE = 128  # pixels of a picture on a sheet
COLUMNS = 10  # pictures in a row of a sheet
DRAWN = "drawn by chance"
FRAME = "#127a3d"  # of the true picture
# A table that is wider than its page scrolls, by keyboard too.
_WIDE = '<div class="wide" role="group" aria-label="table" tabindex="0">'


class Choice(NamedTuple):
  """A query to show, and why this one."""

  query: int
  why: str
  before: int | None  # rank of the true picture, from 1; None = not listed
  after: int | None


class Shown(NamedTuple):
  picture: np.ndarray  # uint8 [T,H,W,3]
  true: bool
  score: float | None = None


class Case(NamedTuple):
  """A query with the first answers of both lists."""

  text: str
  why: str
  before: int | None
  after: int | None
  true: np.ndarray  # uint8 [T,H,W,3]: the picture meant
  fast: tuple[Shown, ...]
  final: tuple[Shown, ...]


class Look(NamedTuple):
  """A picture, what is said of it, and where each word looked."""

  text: str
  picture: np.ndarray  # uint8 [T,H,W,3]
  words: Sequence[attention.Word]


def choose_cases(
  fast: types.Candidates,
  final: types.Candidates,
  positives: Int[np.ndarray, "Q P"],
  count: int = 12,
  seed: int = 0,
) -> list[Choice]:
  """Queries to show: some that nobody picked, then the extremes, said to be.

  First `count` of a seeded shuffle. Then, of all queries, the three whose rank
  grew by the largest factor between the lists and the three where it shrank by
  the largest; what is not listed counts as one past the list's end. A query
  that is both drawn and extreme comes once and says both.

  Args:
    fast: before re-ranking.
    final: after it; the same queries.
    positives: rows that answer each query; -1 pads.
  """
  before, after = (_ranks(found.rows, positives) for found in (fast, final))
  order = np.random.default_rng(seed).permutation(len(before))
  ends = [np.asarray(found.rows).shape[1] + 1 for found in (fast, final)]
  ratio = np.log(np.where(after > 0, after, ends[1]))
  ratio -= np.log(np.where(before > 0, before, ends[0]))

  def choice(query: int, why: str) -> Choice:
    ranks = (int(before[query]) or None, int(after[query]) or None)
    return Choice(int(query), why, *ranks)

  rising = order[np.argsort(ratio[order], kind="stable")]
  hurt = [q for q in rising[::-1][:EXTREMES] if ratio[q] > 0]
  helped = [q for q in rising[:EXTREMES] if ratio[q] < 0]
  extremes = {int(q): "re-ranking hurt most" for q in hurt}
  extremes |= {int(q): "re-ranking helped most" for q in helped}
  drawn = [int(q) for q in order[:count]]
  chosen = [
    choice(q, f"{DRAWN}; also: {extremes[q]}" if q in extremes else DRAWN)
    for q in drawn
  ]
  chosen += [
    choice(q, f"picked: {why}") for q, why in extremes.items() if q not in drawn
  ]
  return chosen


def show_cases(
  choices: Sequence[Choice],
  texts: Sequence[str],
  fast: types.Candidates,
  final: types.Candidates,
  positives: Int[np.ndarray, "Q P"],
  visuals: Callable[[Sequence[int]], np.ndarray],
) -> list[Case]:
  """Choices with their pictures: `visuals` is `Source.visuals`."""
  cases = []
  for choice in choices:
    true = [int(row) for row in positives[choice.query] if row >= 0]
    lists = []
    for found in (fast, final):
      rows = [int(r) for r in found.rows[choice.query][:SHOWN] if r >= 0]
      scores = found.scores[choice.query][: len(rows)]  # padding is last
      pictures = visuals(rows) if rows else ()
      lists.append(
        tuple(
          Shown(picture, row in true, float(score))
          for picture, row, score in zip(pictures, rows, scores, strict=True)
        )
      )
    meant = visuals(true[:1])[0]
    cases.append(Case(texts[choice.query], *choice[1:], meant, *lists))
  return cases


def contact_sheet(
  path: epath.PathLike,
  title: str,
  rows: Sequence[Sequence[np.ndarray]],
  labels: Sequence[str],
  attribution: str,
  framed: Sequence[int | None] | None = None,
  scores: Sequence[Sequence[float]] | None = None,
) -> None:
  """A PNG with a row of answers per ranker, best first, at most ten.

  Args:
    path: of the file.
    title: the query.
    rows: uint8 [T,H,W,3] pictures of each ranker; the first frame is shown.
    labels: a ranker's name each.
    attribution: of the pictures, at the bottom.
    framed: place of the true picture in each row, from 0; None = unknown.
    scores: of the pictures of each row; None = ranks alone.

  Raises:
    ValueError: as many labels and frames as rows are needed, and one row.
  """
  framed = [None] * len(rows) if framed is None else framed
  if not rows or not len(rows) == len(labels) == len(framed):
    raise ValueError(
      "contact_sheet: needs rows, a label and a place to frame each; got "
      f"{len(rows)} rows, {len(labels)} labels, {len(framed)} places. give one "
      "of each per ranker"
    )
  if scores is not None and any(
    len(some) < min(len(row), COLUMNS)
    for some, row in zip(scores, rows, strict=True)
  ):
    raise ValueError(
      "contact_sheet: every picture shown needs a score; got "
      f"{[len(some) for some in scores]} scores for {[len(r) for r in rows]} "
      "pictures. give one each, or leave scores out"
    )
  large, middle, small = (ImageFont.load_default(s) for s in (22, 15, 12))
  gap, margin = 10, 16
  left = margin + max(round(middle.getlength(name)) for name in labels) + gap
  columns = max(1, min(COLUMNS, max(len(row) for row in rows)))
  width = max(left + columns * (SIDE + gap) + margin, 480)
  room = width - 2 * margin
  heading = _wrapped(title, large, room)
  credit = _wrapped(attribution, small, room)
  top = margin + 28 * len(heading) + gap
  each = SIDE + 30
  height = top + each * len(rows) + 16 * len(credit) + margin
  sheet = Image.new("RGB", (width, height), "white")
  draw = ImageDraw.Draw(sheet)
  for i, line in enumerate(heading):
    draw.text((margin, margin + 28 * i), line, "black", large)
  for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
    y = top + i * each
    draw.text((margin, y + SIDE // 2), label, "black", middle, "lm")
    for j, picture in enumerate(row[:COLUMNS]):
      x = left + j * (SIDE + gap)
      true = framed[i] == j
      sheet.paste(_scaled(picture), (x, y))
      if true:
        edge = (x - 4, y - 4, x + SIDE + 3, y + SIDE + 3)
        draw.rectangle(edge, outline=FRAME, width=4)
      else:  # white pictures end somewhere too
        edge = (x - 1, y - 1, x + SIDE, y + SIDE)
        draw.rectangle(edge, outline="#ddd")
      colour = FRAME if true else "#555"
      under = f"{j + 1}"
      if scores is not None:
        under += f"   ({scores[i][j]:.2f})"  # a hyphen: the font has no minus
      draw.text((x + SIDE // 2, y + SIDE + 6), under, colour, small, "mt")
  for i, line in enumerate(credit):
    y = top + each * len(rows) + 16 * i
    draw.text((margin, y), line, "#555", small)
  file = io.BytesIO()
  sheet.save(file, "PNG")
  files.write_bytes(path, file.getvalue())


def write(
  path: epath.PathLike,
  report: Mapping[str, Any],
  curves: Mapping[str, Sequence[Mapping[str, Any]]],
  cases: Sequence[Case],
  attentions: Sequence[Look],
  attribution: str,
  lists: tuple[str, str] = ("Fast", "Re-ranked"),
) -> None:
  """Writes the page, all of it or nothing.

  Args:
    path: index.html.
    report: of report.json; its extras may be missing.
    curves: `report.read` of each stage's folder.
    cases: of `show_cases`.
    attentions: of `attention.word_attention`.
    attribution: of the pictures, with their licence.
    lists: what the two lists of every case are called.
  """
  credit = _credit(attribution)
  sections = (
    ("How well, and how fast", _table(report)),
    ("What the time buys", _trade(report)),
    ("Compared on the same queries", _paired(report)),
    ("Answers", _cases(cases, lists, report["queries"], credit)),
    ("Where Slow looks", _looks(attentions, credit)),
    ("Training", _curves(curves)),
    ("Time", _seconds(report)),
    ("Limits", _limits(report)),
  )
  body = "\n".join(
    f"<section>\n<h2>{name}</h2>\n{inside}\n</section>"
    for name, inside in sections
    if inside
  )
  template = resources.files("fs_jax").joinpath("page.html").read_text("utf-8")
  page = string.Template(template).substitute(what=_what(report), sections=body)
  files.write_text(path, page)


def _what(report: Mapping[str, Any]) -> str:
  return (
    f"{report['queries']:,} text queries, each asked for the one picture it "
    f"was written for among {report['gallery']:,}: a dual encoder (Fast) finds "
    "candidates, a captioner (Slow) orders them anew by how well each "
    "explains the query, and what Slow knows is taught back to Fast."
  )


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


def _table(report: Mapping[str, Any]) -> str:
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


def _trade(report: Mapping[str, Any]) -> str:
  points = [
    plots.Point(row["name"], row["ms_per_query"], *row["R@1"])
    for row in report["rows"]
    if row.get("ms_per_query") and row.get("R@1")
  ]
  if not points:
    return ""
  joined = [p.name for p in points if p.name.startswith("rerank@")]
  said = "; ".join(f"{p.name} {p.y:g} at {p.x:g} ms" for p in points)
  plot = plots.scatter(
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


def _paired(report: Mapping[str, Any]) -> str:
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


def _cases(
  cases: Sequence[Case], names: tuple[str, str], queries: int, credit: str
) -> str:
  if not cases:
    return ""
  drawn = sum(case.why.startswith(DRAWN) for case in cases)
  parts = [
    f"<p>{drawn} queries are the first of a seeded shuffle, whatever came of "
    f"them. The others were picked: of all {queries:,}, at most {EXTREMES} "
    "where re-ranking moved the picture meant down by the largest factor, and "
    f"as many where it moved it up. The first {SHOWN} of each list are shown, "
    "with their scores, which compare within a list only. The picture that "
    "the query was written for is framed: others may fit its words as "
    "well.</p>"
  ]
  for case in cases:
    moved = f"rank {_rank(case.before)} → {_rank(case.after)}"
    lists = "".join(
      f"<figure><figcaption>{whose}</figcaption>{_shown(whose, shown)}</figure>"
      for whose, shown in zip(
        map(html.escape, names), (case.fast, case.final), strict=True
      )
    )
    missing = not any(s.true for s in (*case.fast, *case.final))
    meant = "<figcaption>Meant, in neither</figcaption>" + _list(
      [_item(case.true, "the picture meant", "", True)]
    )
    parts.append(
      f"<article><h3>“{html.escape(case.text)}” "
      f'<span class="why">{moved}; {html.escape(case.why)}</span></h3>'
      f'<div class="lists">{lists}</div>'
      f"{f'<figure>{meant}</figure>' if missing else ''}</article>"
    )
  return "\n".join([*parts, credit])


def _shown(whose: str, shown: Sequence[Shown]) -> str:
  return _list(
    _item(
      one.picture,
      f"{whose}, answer {i}{', the picture meant' if one.true else ''}",
      f"{i}{_score(one.score)}",
      one.true,
    )
    for i, one in enumerate(shown, 1)
  )


def _score(score: float | None) -> str:
  return "" if score is None else f"<br/>{_minus(score, '.2f')}"


def _list(items: Any) -> str:
  return f'<ol class="shown">{"".join(items)}</ol>'


def _item(picture: np.ndarray, alt: str, under: str, true: bool) -> str:
  kind = ' class="true"' if true else ""
  return f"<li{kind}>{_image(picture[0], alt)}{under}</li>"


def _looks(looks: Sequence[Look], credit: str) -> str:
  if not looks:
    return ""
  parts = [
    "<p>To predict each word of a query Slow looks at the picture, first at "
    "coarse tokens, then at finer ones: one map each, from the top. Light is "
    "where its attention lies, the mean over heads and layers of the forward "
    "reading, each map brightest at its largest weight. Under a word are its "
    "log-probabilities in nats: → given the words before it, ← given those "
    "after it.</p>"
  ]
  for look in looks:
    frame = look.picture[0]
    forward, backward = _readings(look.words)
    items = [f"<li>{_image(frame, 'the picture')}</li>"]
    for i, word in enumerate(forward):
      maps = "".join(
        _image(_lit(frame, m), f"attention to “{word.token}”: {_where(m)}")
        for m in word.maps
      )
      said = f"→ {_minus(word.log_p, '.2f')}"
      if backward:
        said += f"<br/>← {_minus(backward[i].log_p, '.2f')}"
      items.append(
        f"<li>{maps}{html.escape(word.token)}<br/>"
        f'<span class="dim">{said}</span></li>'
      )
    total = sum(word.log_p for word in look.words)
    both = "both readings" if backward else "the forward reading"
    parts.append(
      f"<article><h3>“{html.escape(look.text)}” "
      f'<span class="why">all words of {both} and the ends: '
      f"{_minus(total, '.1f')} nats</span></h3>"
      f'<ol class="words">{"".join(items)}</ol></article>'
    )
  return "\n".join([*parts, credit])


def _readings(
  words: Sequence[attention.Word],
) -> tuple[list[attention.Word], list[attention.Word]]:
  """Words of both readings without EOS, both in the order of the text."""
  end = tokenizers.SPECIAL[tokenizers.Tokenizer.eos]
  forward, backward = (
    [w for w in words if w.direction == direction and w.token != end]
    for direction in attention.DIRECTIONS
  )
  return forward, backward[::-1]


def _lit(frame: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """A frame, dark where weights are small; a token's square is one shade."""
  height, width = frame.shape[:2]
  h, w = weights.shape
  rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
  shade = weights[rows][:, columns] / max(float(weights.max()), 1e-9)
  return (frame * (0.12 + 0.88 * shade[..., None])).astype(np.uint8)


def _where(weights: np.ndarray) -> str:
  """The place of the largest weight, in words."""
  h, w = weights.shape
  tokens = f"of {h} × {w} tokens"
  row, column = np.unravel_index(int(np.argmax(weights)), weights.shape)
  up = ("top", "middle", "bottom")[int(3 * (row + 0.5) / h)]
  across = ("left", "centre", "right")[int(3 * (column + 0.5) / w)]
  return f"{tokens} most at the {up} {across}"


def _curves(
  curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
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
      plot = plots.curve(line, said, "step", key)
      figures.append(
        f"<figure>{plot}<figcaption>{html.escape(said)}</figcaption></figure>"
      )
  return f'<div class="curves">{"".join(figures)}</div>' if figures else ""


def _seconds(report: Mapping[str, Any]) -> str:
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


def _limits(report: Mapping[str, Any]) -> str:
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


def _credit(text: str) -> str:
  """Who made the pictures: goes below them, wherever they are shown."""
  lines = (html.escape(line) for line in text.splitlines() if line.strip())
  return f'<div class="credit">{"".join(f"<p>{x}</p>" for x in lines)}</div>'


def _image(picture: np.ndarray, alt: str) -> str:
  """uint8 [H,W,3] as an image inside the page."""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "PNG", optimize=True)
  data = base64.b64encode(file.getvalue()).decode()
  height, width = picture.shape[:2]
  return (
    f'<img src="data:image/png;base64,{data}" width="{width}" '
    f'height="{height}" alt="{html.escape(alt)}"/>'
  )


def _interval(values: Sequence[float] | None) -> str:
  if values is None:
    return ""
  value, low, high = values
  return f"{value:.1f}<small>{low:.1f} to {high:.1f}</small>"


def _ms(value: float | None) -> str:
  return "" if value is None else f"{value:.3g}"


def _signed(value: float) -> str:
  return _minus(value, "+.1f")


def _minus(value: float, digits: str) -> str:
  return f"{value:{digits}}".replace("-", "−")


def _rank(rank: int | None) -> str:
  return "beyond the list" if rank is None else f"{rank}"


def _ranks(rows: Any, positives: Int[np.ndarray, "Q P"]) -> np.ndarray:
  """Place of the first positive of each list, from 1; 0 = none listed."""
  rows, positives = np.asarray(rows), np.asarray(positives)
  hit = (rows[:, :, None] == positives[:, None]) & (rows[:, :, None] >= 0)
  hit = hit.any(axis=2)
  return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)


def _scaled(picture: np.ndarray) -> Image.Image:
  """The first frame, at most SIDE on its longer side, centred on white."""
  image = Image.fromarray(picture[0])
  scale = SIDE / max(image.size)
  size = (
    max(1, round(image.width * scale)),
    max(1, round(image.height * scale)),
  )
  square = Image.new("RGB", (SIDE, SIDE), "white")
  corner = ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2)
  square.paste(image.resize(size, Image.Resampling.LANCZOS), corner)
  return square


def _wrapped(text: str, font: Any, room: float) -> list[str]:
  """Lines of a text that are at most `room` wide."""
  each = max(font.getlength(text) / max(len(text), 1), 1)
  letters = max(int(room / each * 0.95), 8)
  return [
    line
    for paragraph in text.splitlines()
    for line in textwrap.wrap(paragraph, letters) or [""]
  ]
