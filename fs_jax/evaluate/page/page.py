"""What a study measured, as one page to look at.

`index.html` needs nothing beside it: pictures and plots are inside, there is no
script. Everything that came from data is escaped.
"""

import base64
import html
import io
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from fs_jax.data import tokenizer as tokenizers
from fs_jax.evaluate.page import examples
from fs_jax.evaluate.page import sections as sections_module
from fs_jax.machine import files
from fs_jax.search import grounding


class Look(NamedTuple):
  """A picture, what is said of it, and where each word looked."""

  text: str
  picture: np.ndarray  # uint8 [T,H,W,3]
  words: Sequence[grounding.Word]


def write(
  path: epath.PathLike,
  report: Mapping[str, Any],
  curves: Mapping[str, Sequence[Mapping[str, Any]]],
  answers: Sequence[examples.Case],
  attentions: Sequence[Look],
  attribution: str,
  lists: tuple[str, str] = ("Fast", "Re-ranked"),
) -> None:
  """Writes the page, all of it or nothing.

  Args:
    path: index.html.
    report: of report.json; its extras may be missing.
    curves: `journal.read` of each stage's folder.
    answers: of `cases.show_cases`.
    attentions: of `grounding.ground_words`.
    attribution: of the pictures, with their licence.
    lists: what the two lists of every case are called.
  """
  credit = _credit(attribution)
  sections = (
    ("How well, and how fast", sections_module.table(report)),
    ("What the time buys", sections_module.trade(report)),
    ("Compared on the same queries", sections_module.paired(report)),
    ("Answers", _answers(answers, lists, report["queries"], credit)),
    ("Where Slow looks", _looks(attentions, credit)),
    ("Training", sections_module.training(curves)),
    ("Time", sections_module.times(report)),
    ("Limits", sections_module.limits(report)),
  )
  body = "\n".join(
    f"<section>\n<h2>{name}</h2>\n{inside}\n</section>"
    for name, inside in sections
    if inside
  )
  template = (
    resources.files(__package__).joinpath("page.html").read_text("utf-8")
  )
  page = string.Template(template).substitute(
    what=sections_module.summary(report), sections=body
  )
  files.write_text(path, page)


def _answers(
  answers: Sequence[examples.Case],
  names: tuple[str, str],
  queries: int,
  credit: str,
) -> str:
  if not answers:
    return ""
  drawn = sum(case.why.startswith(examples.DRAWN) for case in answers)
  parts = [
    f"<p>{drawn} queries are the first of a seeded shuffle, whatever came of "
    f"them. The others were picked: of all {queries:,}, at most "
    f"{examples.EXTREMES} where re-ranking moved the picture meant down by the "
    "largest factor, and as many where it moved it up. The first "
    f"{examples.SHOWN} of each list are shown, with their scores, which "
    "compare within a list only. The picture that the query was written for is "
    "framed: others may fit its words as well.</p>"
  ]
  for case in answers:
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


def _shown(whose: str, shown: Sequence[examples.Shown]) -> str:
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
  return "" if score is None else f"<br/>{sections_module.minus(score, '.2f')}"


def _list(items: Any) -> str:
  return f'<ol class="shown">{"".join(items)}</ol>'


def _item(picture: np.ndarray, alt: str, under: str, true: bool) -> str:
  kind = ' class="true"' if true else ""
  return f"<li{kind}>{_image(picture[0], alt)}{under}</li>"


def _rank(rank: int | None) -> str:
  return "beyond the list" if rank is None else f"{rank}"


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
      said = f"→ {sections_module.minus(word.log_p, '.2f')}"
      if backward:
        said += f"<br/>← {sections_module.minus(backward[i].log_p, '.2f')}"
      items.append(
        f"<li>{maps}{html.escape(word.token)}<br/>"
        f'<span class="dim">{said}</span></li>'
      )
    total = sum(word.log_p for word in look.words)
    both = "both readings" if backward else "the forward reading"
    parts.append(
      f"<article><h3>“{html.escape(look.text)}” "
      f'<span class="why">all words of {both} and the ends: '
      f"{sections_module.minus(total, '.1f')} nats</span></h3>"
      f'<ol class="words">{"".join(items)}</ol></article>'
    )
  return "\n".join([*parts, credit])


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
