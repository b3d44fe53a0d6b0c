"""Lists of pictures as one PNG: each ranker's answers to a query."""

import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from fs_jax.machine import files

SIDE = 128  # pixels of a picture on a sheet
COLUMNS = 10  # pictures in a row of a sheet
FRAME = "#127a3d"  # around the true picture
_GAP, _MARGIN = 10, 16  # pixels
_HEADING, _ROW, _CREDIT = 28, SIDE + 30, 16  # pixels of a line of each


def draw(
  path: epath.PathLike,
  title: str,
  rows: Sequence[Sequence[np.ndarray]],
  labels: Sequence[str],
  attribution: str,
  framed: Sequence[int | None] | None = None,
  scores: Sequence[Sequence[float]] | None = None,
) -> None:
  """Draws a contact sheet: a row of answers per ranker, best first.

  A row shows at most ten pictures.

  Args:
    path: the PNG file.
    title: the query.
    rows: each ranker's pictures, uint8 [T,H,W,3]; the first frame is shown.
    labels: each ranker's name.
    attribution: the pictures' attribution, for the bottom.
    framed: the true picture's place in each row, from 0; None = unknown.
    scores: the scores of each row's pictures; None = show ranks only.

  Raises:
    ValueError: no rows, or not as many labels, frames and scores as rows.
  """
  framed = [None] * len(rows) if framed is None else framed
  _check(rows, labels, framed, scores)
  page = _lay_out(title, rows, labels, attribution)
  image = Image.new("RGB", (page.width, page.height), "white")
  pen = ImageDraw.Draw(image)
  fonts = page.fonts
  for i, line in enumerate(page.heading):
    pen.text((_MARGIN, _MARGIN + _HEADING * i), line, "black", fonts.large)
  for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
    y = page.top + _ROW * i
    pen.text((_MARGIN, y + SIDE // 2), label, "black", fonts.middle, "lm")
    for j, picture in enumerate(row[:COLUMNS]):
      corner = (page.left + j * (SIDE + _GAP), y)
      caption = f"{j + 1}"
      if scores is not None:
        # A hyphen, not a minus sign: the font has none.
        caption += f"   ({scores[i][j]:.2f})"
      image.paste(_scaled(picture), corner)
      _draw_frame(pen, corner, caption, framed[i] == j, fonts.small)
  for i, line in enumerate(page.credit):
    y = page.top + _ROW * len(rows) + _CREDIT * i
    pen.text((_MARGIN, y), line, "#555", fonts.small)
  file = io.BytesIO()
  image.save(file, "PNG")
  files.write_bytes(path, file.getvalue())


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class _Fonts(NamedTuple):
  large: Font
  middle: Font
  small: Font


class _Page(NamedTuple):
  """Sizes and wrapped texts of a sheet."""

  width: int
  height: int
  left: int  # x of the first picture
  top: int  # its y
  heading: list[str]
  credit: list[str]
  fonts: _Fonts


def _check(
  rows: Sequence[Sequence[np.ndarray]],
  labels: Sequence[str],
  framed: Sequence[int | None],
  scores: Sequence[Sequence[float]] | None,
) -> None:
  if not rows or not len(rows) == len(labels) == len(framed):
    raise ValueError(
      "contact sheet: needs rows, and a label and a place to frame for each; "
      f"got {len(rows)} rows, {len(labels)} labels, {len(framed)} places. give "
      "one of each per ranker"
    )
  if scores is not None and any(
    len(values) < min(len(row), COLUMNS)
    for values, row in zip(scores, rows, strict=True)
  ):
    raise ValueError(
      "contact sheet: every picture shown needs a score; got "
      f"{[len(x) for x in scores]} scores for {[len(r) for r in rows]} "
      "pictures. give one each, or leave scores out"
    )


def _lay_out(
  title: str,
  rows: Sequence[Sequence[np.ndarray]],
  labels: Sequence[str],
  attribution: str,
) -> _Page:
  fonts = _Fonts(*(ImageFont.load_default(size) for size in (22, 15, 12)))
  label = max(round(fonts.middle.getlength(name)) for name in labels)
  left = _MARGIN + label + _GAP
  columns = max(1, min(COLUMNS, max(len(row) for row in rows)))
  width = max(left + columns * (SIDE + _GAP) + _MARGIN, 480)
  heading = _wrapped(title, fonts.large, width - 2 * _MARGIN)
  credit = _wrapped(attribution, fonts.small, width - 2 * _MARGIN)
  top = _MARGIN + _HEADING * len(heading) + _GAP
  height = top + _ROW * len(rows) + _CREDIT * len(credit) + _MARGIN
  return _Page(width, height, left, top, heading, credit, fonts)


def _draw_frame(
  pen: ImageDraw.ImageDraw,
  corner: tuple[int, int],
  caption: str,
  true: bool,
  font: Font,
) -> None:
  """Frames a picture and writes its caption below it."""
  x, y = corner
  if true:
    edge = (x - 4, y - 4, x + SIDE + 3, y + SIDE + 3)
    pen.rectangle(edge, outline=FRAME, width=4)
  else:  # shows where a white picture ends
    pen.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline="#ddd")
  colour = FRAME if true else "#555"
  pen.text((x + SIDE // 2, y + SIDE + 6), caption, colour, font, "mt")


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


def _wrapped(text: str, font: Font, width: float) -> list[str]:
  """Wraps a text into lines of at most `width` pixels."""
  letter = max(font.getlength(text) / max(len(text), 1), 1)
  letters = max(int(width / letter * 0.95), 8)
  return [
    line
    for paragraph in text.splitlines()
    for line in textwrap.wrap(paragraph, letters) or [""]
  ]
