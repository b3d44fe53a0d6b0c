"""Pictures of a split before they are rendered: layouts, captions, groups.

Every random draw comes from a stream named by (seed, split, purpose, number).
So a picture does not depend on the artist, nor on how many others there are,
except through the gallery in which its captions are unique.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fs_jax.data.datasets.scenes import captions, grammar, layout, truth

CHUNK = 256  # pictures or groups drawn from one stream
ARRANGEMENTS = 4  # pictures in a group
REFERENCE_GROUPS = 256  # in the gallery that tests training captions
TRIES = 300  # draws for a picture's captions before its group is redrawn
ROUNDS = 50  # times to redraw groups that captions cannot tell apart
STREAMS = {"train": 1, "uncaptioned": 2, "validation": 3, "test": 4}
REFERENCE = 5
ROLES = {"train": 0, "uncaptioned": 0, "validation": 1, "test": 2}


class Picture(NamedTuple):
  """The objects of a picture, and its captions."""

  kind: list[int]
  size: list[int]  # px
  y0: list[int]
  x0: list[int]
  background: int
  captions: list[str]
  group: int  # -1: none


def _chunks(total: int) -> Iterator[tuple[int, int]]:
  """Yields (chunk, how many of its CHUNK draws are needed)."""
  for chunk in range(-(-total // CHUNK)):
    yield chunk, min(CHUNK, total - chunk * CHUNK)


def draw_plain(
  seed: int, split: str, number: int, roles: np.ndarray, backgrounds: int
) -> Iterator[Picture]:
  """Draws pictures without captions."""
  for chunk, needed in _chunks(number):
    rng = np.random.default_rng([seed, STREAMS[split], 0, chunk])
    kinds = layout.sample_kinds(rng, CHUNK, roles, ROLES[split])
    colours = rng.integers(backgrounds, size=CHUNK)
    yield from _pictures(layout.sample(rng, kinds), colours, needed)


def draw_reference(seed: int, roles: np.ndarray) -> truth.Evaluator:
  """Draws a gallery like test's from training pairs; no training picture."""
  rng = np.random.default_rng([seed, REFERENCE])
  kinds = layout.sample_kinds(rng, REFERENCE_GROUPS, roles, 0)
  groups = layout.sample_groups(rng, kinds)
  return truth.Evaluator(layout.scenes(layout.join(groups)))


def draw_captioned(
  seed: int,
  number: int,
  roles: np.ndarray,
  backgrounds: int,
  per_picture: int,
  relation_share: float,
) -> Iterator[Picture]:
  """Draws training pictures, each with `per_picture` captions."""
  gallery = draw_reference(seed, roles)
  for chunk, needed in _chunks(number):
    rng = np.random.default_rng([seed, STREAMS["train"], 0, chunk])
    kinds = layout.sample_kinds(rng, CHUNK, roles, ROLES["train"])
    colours = rng.integers(backgrounds, size=CHUNK)
    groups = layout.sample_groups(rng, kinds)
    scenes, *others = map(layout.things, groups)
    for i, picture in enumerate(_pictures(groups[0], colours, needed)):
      key = [seed, STREAMS["train"], 1, chunk * CHUNK + i]
      sampled = captions.sample_telling(
        scenes[i],
        [other[i] for other in others],
        gallery,
        captions.uniforms(np.random.default_rng(key)),
        relation_share,
        per_picture,
      )
      yield picture._replace(captions=[grammar.text(c) for c in sampled])


def draw_grouped(
  seed: int,
  split: str,
  groups: int,
  roles: np.ndarray,
  backgrounds: int,
  per_picture: int,
  relation_share: float,
) -> list[Picture]:
  """Draws `groups` x 4 pictures; a caption is true of its own picture alone.

  Groups whose pictures captions cannot tell apart are drawn again.

  Raises:
    ValueError: the gallery is too crowded for captions this short.
  """
  if not groups:
    return []
  attempt = [0] * groups
  layouts = [_group(seed, split, g, 0, roles) for g in range(groups)]
  unique: list[list[grammar.Caption]] = [[] for _ in range(4 * groups)]
  for round_number in range(ROUNDS):
    table = layout.join(layouts)
    scenes = layout.things(table)
    gallery = truth.Evaluator(layout.scenes(table))
    short = set()
    for i, scene in enumerate(scenes):
      key = [seed, STREAMS[split], 1, i, round_number]
      draw = captions.uniforms(np.random.default_rng(key))
      unique[i] = captions.sample_unique(
        i, scene, gallery, draw, relation_share, unique[i], per_picture, TRIES
      )
      if len(unique[i]) < per_picture:
        short.add(i // ARRANGEMENTS)
    if not short:
      break
    for group in sorted(short):
      attempt[group] += 1
      layouts[group] = _group(seed, split, group, attempt[group], roles)
      for i in range(ARRANGEMENTS * group, ARRANGEMENTS * (group + 1)):
        unique[i] = []
  else:
    raise ValueError(
      f"{split}_groups: {per_picture} captions must be true of one picture "
      f"alone; got {groups} groups, and {len(short)} of them could not be told "
      f"apart in {ROUNDS} rounds. ask for fewer groups or captions"
    )
  rng = np.random.default_rng([seed, STREAMS[split], 2])
  colours = rng.integers(backgrounds, size=len(scenes))
  texts = [[grammar.text(c) for c in own] for own in unique]
  check_unique(texts, layout.scenes(table), split)
  pictures = _pictures(table, colours, len(scenes))
  return [
    picture._replace(captions=own, group=i // ARRANGEMENTS)
    for i, (picture, own) in enumerate(zip(pictures, texts, strict=True))
  ]


def check_unique(
  texts: list[list[str]], scenes: truth.Scenes, split: str
) -> None:
  """Raises ValueError unless texts[i] are true of picture i and of no other."""
  flat = [text for part in texts for text in part]
  own = np.repeat(np.arange(len(texts)), [len(part) for part in texts])
  matrix = truth.truth_matrix(flat, scenes)
  wrong = np.flatnonzero(
    (matrix.sum(1) != 1) | ~matrix[np.arange(len(own)), own]
  )
  if len(wrong):
    c = wrong[0]
    raise ValueError(
      f"{split} caption {flat[c]!r}: must be true of picture {own[c]} alone; "
      f"got true of {np.flatnonzero(matrix[c]).tolist()}. this is a defect of "
      "the builder: please report it with the config"
    )


def _group(
  seed: int, split: str, group: int, attempt: int, roles: np.ndarray
) -> layout.Layouts:
  """Draws the four arrangements of a group."""
  rng = np.random.default_rng([seed, STREAMS[split], 0, group, attempt])
  kinds = layout.sample_kinds(rng, 1, roles, ROLES[split])
  return layout.join(layout.sample_groups(rng, kinds))


def _pictures(
  layouts: layout.Layouts, colours: np.ndarray, needed: int
) -> Iterator[Picture]:
  counts = (layouts.kind >= 0).sum(1).tolist()
  columns = [part.tolist() for part in layouts]
  for i in range(needed):
    kind, size, y0, x0 = (column[i][: counts[i]] for column in columns)
    yield Picture(kind, size, y0, x0, int(colours[i]), [], -1)
