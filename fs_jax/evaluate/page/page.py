"""A study's results as one page.

`index.html` is self-contained: pictures and plots are inside, and there is no
script. Everything that comes from data is escaped.
"""

import base64
import html
import io
import string
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from fs_jax.data import tokenizer as tokenizers
from fs_jax.evaluate import reports
from fs_jax.evaluate.page import examples, sections
from fs_jax.machine import files
from fs_jax.search import grounding


class Look(NamedTuple):
  """A picture with a query, and the attention of each word."""

  text: str
  picture: np.ndarray  # uint8 [T,H,W,3]
  words: Sequence[grounding.Word]


def write(
  path: epath.PathLike,
  report: reports.Report,
  curves: Mapping[str, Sequence[Mapping[str, Any]]],
  cases: Sequence[examples.Case],
  looks: Sequence[Look],
  attribution: str,
  lists: tuple[str, str] = ("Fast", "Re-ranked"),
) -> None:
  """Writes the page, all of it or nothing.

  Args:
    path: the file, index.html.
    report: report.json; its extras may be missing.
    curves: by stage, what `journal.read` returns for its folder.
    cases: what `examples.show_cases` returns.
    looks: pictures with the words of `grounding.ground_words`.
    attribution: the pictures' authors and licence.
    lists: the names of the two lists of every case.
  """
  credit = _credit(attribution)
  bodies = (
    ("How well, and how fast", sections.table(report)),
    ("What the time buys", sections.trade(report)),
    ("Compared on the same queries", sections.paired(report)),
    ("Answers", _answers(cases, lists, report["queries"], credit)),
    ("Where Slow looks", _looks(looks, credit)),
    ("Training", sections.training(curves)),
    ("Time", sections.times(report)),
    ("Limits", sections.limits(report)),
  )
  body = "\n".join(
    f"<section>\n<h2>{name}</h2>\n{inside}\n</section>"
    for name, inside in bodies
    if inside
  )
  template = (
    resources.files(__package__).joinpath("page.html").read_text("utf-8")
  )
  page = string.Template(template).substitute(
    what=sections.summary(report), sections=body
  )
  files.write_text(path, page)


def _answers(
  cases: Sequence[examples.Case],
  names: tuple[str, str],
  queries: int,
  credit: str,
) -> str:
  if not cases:
    return ""
  drawn = sum(case.reason.startswith(examples.DRAWN) for case in cases)
  blocks = [
    f"<p>{drawn} queries are the first of a seeded shuffle, whatever came of "
    f"them. The others were picked: of all {queries:,}, at most "
    f"{examples.EXTREMES} where re-ranking moved the picture meant down by the "
    "largest factor, and as many where it moved it up. The first "
    f"{examples.SHOWN} of each list are shown, with their scores, which "
    "compare within a list only. The picture that the query was written for is "
    "framed: others may fit its words as well.</p>"
  ]
  for case in cases:
    moved = f"rank {_rank(case.before)} → {_rank(case.after)}"
    lists = "".join(
      f"<figure><figcaption>{name}</figcaption>{_pictures(name, answers)}"
      "</figure>"
      for name, answers in zip(
        map(html.escape, names), (case.fast, case.final), strict=True
      )
    )
    meant = ""
    if not any(answer.true for answer in (*case.fast, *case.final)):
      picture = _item(case.true, "the picture meant", "", True)
      meant = (
        "<figure><figcaption>Meant, in neither</figcaption>"
        f"{_list([picture])}</figure>"
      )
    blocks.append(
      f"<article><h3>“{html.escape(case.text)}” "
      f'<span class="why">{moved}; {html.escape(case.reason)}</span></h3>'
      f'<div class="lists">{lists}</div>{meant}</article>'
    )
  return "\n".join([*blocks, credit])


def _pictures(name: str, answers: Sequence[examples.Answer]) -> str:
  return _list(
    _item(
      answer.picture,
      f"{name}, answer {i}{', the picture meant' if answer.true else ''}",
      f"{i}{_score(answer.score)}",
      answer.true,
    )
    for i, answer in enumerate(answers, 1)
  )


def _score(score: float | None) -> str:
  return "" if score is None else f"<br/>{sections.minus(score, '.2f')}"


def _list(items: Iterable[str]) -> str:
  return f'<ol class="shown">{"".join(items)}</ol>'


def _item(picture: np.ndarray, alt: str, under: str, true: bool) -> str:
  kind = ' class="true"' if true else ""
  return f"<li{kind}>{_image(picture[0], alt)}{under}</li>"


def _rank(rank: int | None) -> str:
  return "beyond the list" if rank is None else f"{rank}"


def _looks(looks: Sequence[Look], credit: str) -> str:
  if not looks:
    return ""
  blocks = [
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
        _image(_lit(frame, m), f"attention to “{word.token}”: {_place(m)}")
        for m in word.maps
      )
      log_p = f"→ {sections.minus(word.log_p, '.2f')}"
      if backward:
        log_p += f"<br/>← {sections.minus(backward[i].log_p, '.2f')}"
      items.append(
        f"<li>{maps}{html.escape(word.token)}<br/>"
        f'<span class="dim">{log_p}</span></li>'
      )
    total = sum(word.log_p for word in look.words)
    both = "both readings" if backward else "the forward reading"
    blocks.append(
      f"<article><h3>“{html.escape(look.text)}” "
      f'<span class="why">all words of {both} and the ends: '
      f"{sections.minus(total, '.1f')} nats</span></h3>"
      f'<ol class="words">{"".join(items)}</ol></article>'
    )
  return "\n".join([*blocks, credit])


def _readings(
  words: Sequence[grounding.Word],
) -> tuple[list[grounding.Word], list[grounding.Word]]:
  """Words of both readings without EOS, both in the order of the text."""
  end = tokenizers.SPECIAL[tokenizers.Tokenizer.eos]
  forward, backward = (
    [w for w in words if w.direction == direction and w.token != end]
    for direction in grounding.DIRECTIONS
  )
  return forward, backward[::-1]


def _lit(frame: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Darkens a frame where weights are small; a token's square is one shade."""
  height, width = frame.shape[:2]
  h, w = weights.shape
  rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
  shade = weights[rows][:, columns] / max(float(weights.max()), 1e-9)
  return (frame * (0.12 + 0.88 * shade[..., None])).astype(np.uint8)


def _place(weights: np.ndarray) -> str:
  """The place of the largest weight, in words."""
  h, w = weights.shape
  tokens = f"of {h} × {w} tokens"
  row, column = np.unravel_index(int(np.argmax(weights)), weights.shape)
  up = ("top", "middle", "bottom")[int(3 * (row + 0.5) / h)]
  across = ("left", "centre", "right")[int(3 * (column + 0.5) / w)]
  return f"{tokens} most at the {up} {across}"


def _credit(text: str) -> str:
  """The pictures' attribution, for below them wherever they are shown."""
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
