"""Sampling captions that are true of a scene and pick it out of others.

The sampler says something true; who asks decides whether that is enough.
`unique` asks for captions true of one picture of a gallery (validation, test);
`telling` asks the same of a fixed reference gallery and of other arrangements
of the same objects, so that training captions say as much as test captions do.
"""

from collections.abc import Callable, Iterator

import numpy as np

from fs_jax.data.datasets.scenes import grammar, truth

CLAUSES = (0.35, 0.45, 0.2)  # of captions drawn with 1, 2, 3 clauses
SIZED = 0.5  # of phrases say small or big
COUNTED = 0.6  # of phrases that could say two or three do
BARE = 0.12  # of the clauses that are no relation name no place
QUARTER = 0.6  # of the places are a quarter, the others a half
TRIES = 80  # draws for one caption of a training picture


def uniforms(rng: np.random.Generator) -> Callable[[], float]:
  """A function that gives the stream's floats in [0, 1), one a call."""

  def endless() -> Iterator[float]:
    while True:
      yield from rng.random(256).tolist()

  return endless().__next__


def _pick(options: list, draw: Callable[[], float]):
  return options[int(draw() * len(options))]


def sample(
  scene: truth.Scene, draw: Callable[[], float], relation_share: float
) -> grammar.Caption | None:
  """One caption true of the scene, or None when the draw came to nothing.

  Args:
    scene: at least two objects.
    draw: gives floats in [0, 1), as `uniforms` does.
    relation_share: chance of a clause to be a relation. The share among
      accepted captions differs, as some clauses tell pictures apart better.
  """
  first, second, _ = CLAUSES
  number = draw()
  number = 1 if number < first else (2 if number < first + second else 3)
  free = list(range(len(scene)))
  clauses = []
  while free and len(clauses) < number:
    subject = free.pop(int(draw() * len(free)))
    if draw() < relation_share:
      other = int(draw() * (len(scene) - 1))
      other += other >= subject
      clause = _relation(scene, subject, other, draw)
      free = [i for i in free if i != other]
    else:
      clause = _place(scene, subject, draw)
    if clause is None or clause in clauses or not truth.holds(clause, scene):
      return None
    clauses.append(clause)
  caption = tuple(clauses)
  too_long = len(grammar.text(caption).split()) > grammar.MAX_WORDS
  return None if too_long else caption


def _phrase(
  scene: truth.Scene, i: int, draw: Callable[[], float], place: str = ""
) -> grammar.Phrase:
  thing = scene[i]
  size = grammar.SIZES[thing.big] if draw() < SIZED else ""
  phrase = grammar.Phrase(1, size, thing.kind)
  same = truth.matching(phrase, scene)
  if place:
    same = [t for t in same if truth.in_place(t, place)]
  if len(same) in grammar.COUNTS and len(same) > 1 and draw() < COUNTED:
    phrase = phrase._replace(count=len(same))
  return phrase


def _place(
  scene: truth.Scene, i: int, draw: Callable[[], float]
) -> grammar.Clause:
  if draw() < BARE:
    return grammar.Clause(_phrase(scene, i, draw))
  quarter = draw() < QUARTER
  place = _pick(
    [
      place
      for place, sides in grammar.PLACES.items()
      if all(sides) == quarter and truth.in_place(scene[i], place)
    ],
    draw,
  )
  return grammar.Clause(_phrase(scene, i, draw, place), place)


def _relation(
  scene: truth.Scene, i: int, j: int, draw: Callable[[], float]
) -> grammar.Clause | None:
  options = [
    link
    for link in grammar.RELATIONS
    if truth.beside(scene[i], scene[j], link)
  ]
  if not options:
    return None
  link = _pick(options, draw)
  return grammar.Clause(_phrase(scene, i, draw), link, _phrase(scene, j, draw))


def telling(
  scene: truth.Scene,
  others: list[truth.Scene],
  reference: truth.Evaluator,
  draw: Callable[[], float],
  relation_share: float,
  number: int,
) -> list[grammar.Caption]:
  """`number` different captions true of `scene` and of nothing else seen.

  A caption is kept when it is false of all `others` and of all of the reference
  gallery; after `TRIES` draws the one true of the fewest is kept.
  """
  out: list[grammar.Caption] = []
  seen: set[frozenset] = set()
  while len(out) < number:
    best, fewest = None, None
    for _ in range(TRIES):
      caption = sample(scene, draw, relation_share)
      if caption is None or frozenset(caption) in seen:
        continue
      also = sum(all(truth.holds(c, o) for c in caption) for o in others)
      if fewest is not None and also >= fewest:
        continue
      also += reference.bits(caption).bit_count()
      if fewest is None or also < fewest:
        best, fewest = caption, also
      if also == 0:
        break
    if best is None:
      continue  # unlucky draws: the stream goes on
    seen.add(frozenset(best))
    out.append(best)
  return out


def unique(
  index: int,
  scene: truth.Scene,
  gallery: truth.Evaluator,
  draw: Callable[[], float],
  relation_share: float,
  kept: list[grammar.Caption],
  number: int,
  tries: int,
) -> list[grammar.Caption]:
  """Up to `number` captions true of picture `index` alone in the gallery.

  `kept` are captions of an earlier round; those still unique stay. Fewer than
  `number` come back when `tries` draws did not give enough.
  """
  own = 1 << index
  out = [caption for caption in kept if gallery.bits(caption) == own]
  seen = {frozenset(caption) for caption in out}
  for _ in range(tries):
    if len(out) >= number:
      break
    caption = sample(scene, draw, relation_share)
    if caption is None or frozenset(caption) in seen:
      continue
    if gallery.bits(caption) == own:
      seen.add(frozenset(caption))
      out.append(caption)
  return out
