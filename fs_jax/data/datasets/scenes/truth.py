"""Which captions are true of which scenes, as `grammar.py` defines it.

`Evaluator` decides for a whole gallery at once. `holds` decides the same for
one clause and one scene, in plain Python, for sampling.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fs_jax.data.datasets.scenes import grammar

CANVAS = 64  # px, height and width
MIDDLE = CANVAS / 2  # where halves and quarters meet, px
RELATION = 6.0  # px between centres, beyond which a relation holds


class Thing(NamedTuple):
  """One object of a scene: its kind, its size, its centre in px."""

  kind: int
  big: bool
  y: float
  x: float


Scene = tuple[Thing, ...]


class Scenes(NamedTuple):
  """S scenes of at most O objects, padded with kind -1."""

  kind: np.ndarray  # int [S, O]
  big: np.ndarray  # bool [S, O]
  y: np.ndarray  # float [S, O]
  x: np.ndarray  # float [S, O]


def stack(scenes: Sequence[Scene]) -> Scenes:
  """Stacks scenes into padded arrays."""
  width = max((len(s) for s in scenes), default=0)
  rows = [list(s) + [Thing(-1, False, 0, 0)] * (width - len(s)) for s in scenes]
  table = np.asarray(rows, np.float64).reshape(len(scenes), width, 4)
  return Scenes(
    table[..., 0].astype(np.int32),
    table[..., 1].astype(bool),
    table[..., 2],
    table[..., 3],
  )


def scene(objects: dict) -> Scene:
  """The scene of a record's `objects`, as the data source gives them."""
  return tuple(
    Thing(
      int(kind),
      (size.decode() if isinstance(size, bytes) else str(size)) == "big",
      (box[0] + box[2]) / 2,
      (box[1] + box[3]) / 2,
    )
    for kind, size, box in zip(
      objects["kind"],
      objects["size"],
      np.asarray(objects["box"], float),
      strict=True,
    )
  )


class Evaluator:
  """Truth over one gallery; answers are cached."""

  def __init__(self, scenes: Scenes):
    self.scenes = scenes
    self.count = len(scenes.kind)
    self._phrases: dict[tuple[str, int], np.ndarray] = {}
    self._clauses: dict[grammar.Clause, np.ndarray] = {}
    self._bits: dict[grammar.Clause, int] = {}
    self._both: dict[tuple[int, int], tuple[np.ndarray, dict]] = {}
    y, x = scenes.y, scenes.x
    self._places = {  # [S, O]
      link: ((y - MIDDLE) * v >= 0) & ((x - MIDDLE) * h >= 0)
      for link, (v, h) in grammar.PLACES.items()
    }

  def clause(self, clause: grammar.Clause) -> np.ndarray:
    """The scenes of which the clause is true: bool [S]."""
    if clause not in self._clauses:
      self._clauses[clause] = self._clause(clause)
    return self._clauses[clause]

  def caption(self, caption: grammar.Caption) -> np.ndarray:
    """The scenes of which every clause is true: bool [S]."""
    return np.asarray(np.logical_and.reduce([self.clause(c) for c in caption]))

  def bits(self, caption: Sequence[grammar.Clause]) -> int:
    """The same as an integer whose bit s is scene s: quick to combine."""
    out = -1
    for clause in caption:
      if clause not in self._bits:
        packed = np.packbits(self.clause(clause), bitorder="little")
        self._bits[clause] = int.from_bytes(packed.tobytes(), "little")
      out &= self._bits[clause]
    return out

  def _phrase(self, phrase: grammar.Phrase) -> np.ndarray:
    key = (phrase.size, phrase.kind)
    if key not in self._phrases:
      mask = self.scenes.kind == phrase.kind
      if phrase.size:
        mask = mask & (self.scenes.big == (phrase.size == "big"))
      self._phrases[key] = mask
    return self._phrases[key]

  def _clause(self, clause: grammar.Clause) -> np.ndarray:
    first = self._phrase(clause.subject)  # [S, O]
    if clause.object is None:
      if clause.link:
        first = first & self._places[clause.link]
      return _counted(first, clause.subject.number)
    second = self._phrase(clause.object)
    rows, relations = self._having(clause.subject.kind, clause.object.kind)
    pairs = relations[clause.link]  # [R, O, O], R of the S scenes
    first, second = first[rows], second[rows]
    a, b = first[:, :, None], second[:, None, :]
    every_a, every_b = clause.subject.number > 1, clause.object.number > 1
    if every_a and every_b:
      true = (pairs | ~a | ~b).all((1, 2))
    elif every_a:
      true = ((pairs | ~a).all(1) & second).any(1)
    elif every_b:
      true = ((pairs | ~b).all(2) & first).any(1)
    else:
      true = (pairs & a & b).any((1, 2))
    true = true & _counted(first, clause.subject.number)
    out = np.zeros(self.count, bool)
    out[rows] = true & _counted(second, clause.object.number)
    return out

  def _having(
    self, first: int, second: int
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scenes with both kinds, few of many, and the relations in them."""
    kinds = (first, second)
    if kinds not in self._both:
      a, b = (self._phrase(grammar.Phrase(1, "", kind)) for kind in kinds)
      rows = np.flatnonzero(a.any(1) & b.any(1))
      y, x = self.scenes.y[rows], self.scenes.x[rows]
      dy, dx = y[:, :, None] - y[:, None, :], x[:, :, None] - x[:, None, :]
      relations = {  # first object, link, second object
        link: (dy * v + dx * h) > RELATION
        for link, (v, h) in grammar.RELATIONS.items()
      }
      self._both[kinds] = rows, relations
    return self._both[kinds]


def _counted(mask: np.ndarray, count: int) -> np.ndarray:
  return np.asarray(mask.any(-1) if count == 1 else mask.sum(-1) == count)


def truth_matrix(
  captions: Sequence[grammar.Caption | str], scenes: Scenes | Sequence[Scene]
) -> np.ndarray:
  """Whether caption c is true of scene s: bool [captions,S].

  Captions may be text.

  Raises:
    ValueError: text that does not parse.
  """
  if not isinstance(scenes, Scenes):
    scenes = stack(scenes)
  evaluator = Evaluator(scenes)
  out = np.zeros((len(captions), evaluator.count), bool)
  for row, caption in zip(out, captions, strict=True):
    if isinstance(caption, str):
      caption = grammar.parse(caption)
    row[:] = evaluator.caption(caption)
  return out


def in_place(thing: Thing, place: str) -> bool:
  """Whether the object's centre is in the place."""
  v, h = grammar.PLACES[place]
  return (thing.y - MIDDLE) * v >= 0 and (thing.x - MIDDLE) * h >= 0


def beside(a: Thing, b: Thing, relation: str) -> bool:
  """Whether `a` is left of, right of, above or below `b`."""
  v, h = grammar.RELATIONS[relation]
  return (a.y - b.y) * v + (a.x - b.x) * h > RELATION


def matching(phrase: grammar.Phrase, things: Iterable[Thing]) -> list[Thing]:
  """The objects of the phrase's kind and size."""
  return [
    t
    for t in things
    if t.kind == phrase.kind
    and (not phrase.size or t.big == (phrase.size == "big"))
  ]


def holds(clause: grammar.Clause, things: Scene) -> bool:
  """Whether the clause is true of this scene."""
  first = matching(clause.subject, things)
  if clause.object is None:
    if clause.link:
      first = [t for t in first if in_place(t, clause.link)]
    return _right_number(clause.subject, first)
  second = matching(clause.object, things)
  if not _right_number(clause.subject, first):
    return False
  if not _right_number(clause.object, second):
    return False
  # "a" tries each object alone; "two" and "three" take all together.
  firsts = [first] if clause.subject.number > 1 else [[t] for t in first]
  seconds = [second] if clause.object.number > 1 else [[t] for t in second]
  return any(
    all(beside(a, b, clause.link) for a in some for b in others)
    for some in firsts
    for others in seconds
  )


def _right_number(phrase: grammar.Phrase, things: list[Thing]) -> bool:
  return len(things) == phrase.number if phrase.number > 1 else bool(things)
