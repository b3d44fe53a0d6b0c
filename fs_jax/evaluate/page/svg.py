"""Plots as inline SVG, without scripts; the page's style colours them."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

_LETTER, _LINE = 7.4, 14.0  # width and height of a label's letter, SVG units


class Point(NamedTuple):
  """A mark with an interval up and down, and its name beside it."""

  name: str
  x: float
  y: float
  low: float
  high: float


class _Frame(NamedTuple):
  """A plot's size, the range of its axes, and what surrounds them."""

  width: float
  height: float
  x: tuple[float, float]
  y: tuple[float, float]
  log_x: bool
  left: float = 46
  right: float = 14
  top: float = 10
  bottom: float = 42

  def at(self, x: float, y: float) -> tuple[float, float]:
    scale = math.log10 if self.log_x else float
    low, high = scale(self.x[0]), scale(self.x[1])
    across = (scale(x) - low) / (high - low)
    up = (y - self.y[0]) / (self.y[1] - self.y[0])
    return (
      self.left + across * (self.width - self.left - self.right),
      self.height - self.bottom - up * (self.height - self.top - self.bottom),
    )


def scatter(
  points: Sequence[Point],
  title: str,
  x_label: str,
  y_label: str,
  joined: Sequence[str] = (),
) -> str:
  """Marks with intervals over a logarithmic x axis.

  Args:
    points: x above 0.
    title: what screen readers read instead of the plot.
    x_label: the x axis's label.
    y_label: the y axis's label.
    joined: names of points that a line connects, in order of x.
  """
  xs = [p.x for p in points]
  ys = [y for p in points for y in (p.low, p.high)]
  y_ticks = ticks(min(ys), max(ys))
  # The last mark needs room for its name, the first for half of its whisker.
  decades = max(math.log10(max(xs) / min(xs)), 0.5)
  x_range = (min(xs) / 10 ** (0.1 * decades), max(xs) * 10 ** (0.25 * decades))
  frame = _Frame(460, 320, x_range, (y_ticks[0], y_ticks[-1]), True)
  shapes = _axes(frame, _log_ticks(*frame.x), y_ticks, x_label, y_label)
  line = sorted((p for p in points if p.name in joined), key=lambda p: p.x)
  if len(line) > 1:
    shapes.append(_path(frame, [(p.x, p.y) for p in line], "joined"))
  taken = []
  for point in points:
    x, y = frame.at(point.x, point.y)
    high = frame.at(point.x, point.high)[1]
    low = frame.at(point.x, point.low)[1]
    shapes.append(
      f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}'
      f'M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"/>'
      f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    )
    taken.append((x - 5, high - 2, x + 5, low + 2))
  for point in points:
    shapes.append(_label(frame, point, taken))
  return _svg(frame, title, shapes)


def curve(
  line: Sequence[tuple[float, float]],
  title: str,
  x_label: str,
  y_label: str,
) -> str:
  """A line of at least one point over a linear x axis."""
  xs, ys = [x for x, _ in line], [y for _, y in line]
  x_ticks, y_ticks = ticks(0, max(xs), 4), ticks(min(ys), max(ys))
  frame = _Frame(
    330,
    210,
    (0, max(max(xs), 1)),
    (y_ticks[0], y_ticks[-1]),
    False,
    right=18,
  )
  x_ticks = [x for x in x_ticks if x <= frame.x[1]]
  shapes = _axes(frame, x_ticks, y_ticks, x_label, y_label)
  shapes.append(_path(frame, line, "line"))
  x, y = frame.at(*line[-1])
  shapes.append(f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
  return _svg(frame, title, shapes)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Round numbers around a range: its first and last enclose it."""
  if high <= low:
    low, high = low - 0.5, high + 0.5
  rough = (high - low) / count
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
  first = math.floor(low / step + 1e-9)
  last = math.ceil(high / step - 1e-9)
  return [round(i * step, 10) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  steps = (1,) if math.log10(high / low) > 2.5 else (1, 2, 5)
  return [
    s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high
  ]


def _axes(
  frame: _Frame,
  x_ticks: Sequence[float],
  y_ticks: Sequence[float],
  x_label: str,
  y_label: str,
) -> list[str]:
  shapes = []
  floor = frame.height - frame.bottom
  right = frame.width - frame.right
  for value in y_ticks:
    y = frame.at(frame.x[0], value)[1]
    shapes.append(
      f'<path class="grid" d="M{frame.left} {y:.1f}H{right}"/>'
      f'<text x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">'
      f"{value:g}</text>"
    )
  for value in x_ticks:
    x = frame.at(value, frame.y[0])[0]
    shapes.append(
      f'<path class="grid" d="M{x:.1f} {frame.top}V{floor}"/>'
      f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{value:g}'
      "</text>"
    )
  middle = (frame.left + right) / 2
  half = (frame.top + floor) / 2
  shapes.append(
    f'<text x="{middle:.1f}" y="{frame.height - 8}" text-anchor="middle">'
    f"{html.escape(x_label)}</text>"
    f'<text transform="translate(12 {half:.1f}) rotate(-90)" '
    f'text-anchor="middle">{html.escape(y_label)}</text>'
  )
  return shapes


def _path(frame: _Frame, line: Sequence[tuple[float, float]], kind: str) -> str:
  places = (frame.at(x, y) for x, y in line)
  d = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
  return f'<path class="{kind}" d="M{d}"/>'


def _label(
  frame: _Frame, point: Point, taken: list[tuple[float, float, float, float]]
) -> str:
  """A name beside its mark, inside the plot, where it overlaps least."""
  x, y = frame.at(point.x, point.y)
  width = _LETTER * len(point.name)
  boxes = []
  for offset in (0, 12, -12, 24, -24, 36, -36, 50, -50):
    top = y + offset - _LINE / 2
    boxes.append((x + 9, top, x + 9 + width, top + _LINE))
    boxes.append((x - 9 - width, top, x - 9, top + _LINE))
  above = frame.at(point.x, point.high)[1]
  below = frame.at(point.x, point.low)[1]
  for top in (above - _LINE - 4, below + 4):
    boxes.append((x - width / 2, top, x + width / 2, top + _LINE))
  inside = [
    box
    for box in boxes
    if box[0] >= frame.left
    and box[2] <= frame.width
    and box[1] >= 0
    and box[3] <= frame.height - frame.bottom
  ]
  box = min(  # the first of equals
    inside or boxes,
    key=lambda box: sum(_overlap(box, other) for other in taken),
  )
  taken.append(box)
  side = f'x="{box[0]:.1f}"'
  if box[2] < x:
    side = f'x="{box[2]:.1f}" text-anchor="end"'
  elif box[0] < x:
    side = f'x="{x:.1f}" text-anchor="middle"'
  return (
    f'<text class="name" {side} y="{box[3] - 3:.1f}">'
    f"{html.escape(point.name)}</text>"
  )


def _overlap(
  a: tuple[float, float, float, float], b: tuple[float, float, float, float]
) -> bool:
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _svg(frame: _Frame, title: str, shapes: Sequence[str]) -> str:
  text = html.escape(title)
  return (
    f'<svg viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" '
    f'aria-label="{text}"><title>{text}</title>{"".join(shapes)}</svg>'
  )
