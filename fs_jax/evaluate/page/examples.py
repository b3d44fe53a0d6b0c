"""Queries to show with their first answers, and a sheet of pictures.

Which queries is decided here: by chance first, then the extremes, said to be.
The HTML around them is left to `page`.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from fs_jax import types
from fs_jax.machine import files

SHOWN = 5  # answers of each list, side by side
EXTREMES = 3  # queries that re-ranking hurt most, and as many it helped most
SIDE = 128  # pixels of a picture on a sheet
COLUMNS = 10  # pictures in a row of a sheet
DRAWN = "drawn by chance"
FRAME = "#127a3d"  # of the true picture


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
