"""Lists of pictures as one PNG: what each ranker answered to a query."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from fs_jax.machine import files


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


SIDE = 128  # pixels of a picture on a sheet
COLUMNS = 10  # pictures in a row of a sheet
FRAME = "#127a3d"  # of the true picture
