"""Samples captions that are true of a scene and tell it from others.

`sample` draws something true; its callers decide whether that is enough.
`sample_unique` wants captions true of one picture of a gallery (validation,
test). `sample_telling` wants the same of a fixed reference gallery and of other
arrangements of the same objects, so that training captions say as much as test
captions do.

Every sampled clause has a place or a relation: "a fox and a car on the left"
would be true, but would seem to say more.
"""

from collections.abc import Callable, Iterator

import numpy as np

from fs_jax.data.datasets.scenes import grammar, truth

CLAUSES = (0.35, 0.5, 0.15)  # chance that a caption may stop at 1, 2, 3 clauses
SIZED = 0.65  # share of phrases that say small or big
COUNTED = 0.6  # share of phrases that say two or three, of those that could
QUARTER = 0.7  # share of places that are a quarter; the others are a half
TRIES = 80  # draws for one caption of a training picture


def uniforms(rng: np.random.Generator) -> Callable[[], float]:
  """Returns a function that draws one float in [0, 1) per call."""

  def endless() -> Iterator[float]:
    while True:
      yield from rng.random(256).tolist()

  return endless().__next__


def sample(
  scene: truth.Scene,
  draw: Callable[[], float],
  relation_share: float,
  also: Callable[[list[grammar.Clause]], int],
) -> tuple[grammar.Caption, int] | None:
  """Samples a caption true of the scene; counts the others it is true of.

  Adds clauses until no other picture fits, or there is no room for more. None
  is a dead end.

  Args:
    scene: at least two objects.
    draw: returns floats in [0, 1), as `uniforms` does.
    relation_share: chance that a clause is a relation. The share among accepted
      captions differs, as some clauses tell pictures apart better.
    also: clauses -> number of other pictures of which all are true.
  """
  first, second, _ = CLAUSES
  number = draw()
  number = 1 if number < first else (2 if number < first + second else 3)
  free = list(range(len(scene)))
  clauses: list[grammar.Clause] = []
  words, others = -1, -1
  while free and (len(clauses) < number or others):
    subject = free.pop(int(draw() * len(free)))
    if draw() < relation_share:
      other = int(draw() * (len(scene) - 1))
      other += other >= subject
      clause = _relation(scene, subject, other, draw)
      free = [i for i in free if i != other]
    else:
      clause = _place(scene, subject, draw)
    words += 1 + grammar.length(clause)
    if clause in clauses or words > grammar.MAX_WORDS:
      return None
    clauses.append(clause)
    if len(clauses) >= number or not free:
      others = also(clauses)
  return tuple(clauses), others


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
    phrase = phrase._replace(number=len(same))
  return phrase


# (a quarter?, at the bottom?, on the right?) -> places to choose from
_PLACES = {
  (quarter, bottom, right): tuple(
    place
    for place, (v, h) in grammar.PLACES.items()
    if bool(v and h) == quarter
    and v * (2 * bottom - 1) >= 0 <= h * (2 * right - 1)
  )
  for quarter in (False, True)
  for bottom in (False, True)
  for right in (False, True)
}


def _place(
  scene: truth.Scene, i: int, draw: Callable[[], float]
) -> grammar.Clause:
  thing = scene[i]
  sides = thing.y > truth.MIDDLE, thing.x > truth.MIDDLE
  options = _PLACES[draw() < QUARTER, *sides]
  place = options[int(draw() * len(options))]
  return grammar.Clause(_phrase(scene, i, draw, place), place)


def _relation(
  scene: truth.Scene, i: int, j: int, draw: Callable[[], float]
) -> grammar.Clause:
  subject, other = scene[i], scene[j]
  level = "left of" if subject.x < other.x else "right of"
  upright = "above" if subject.y < other.y else "below"
  link, instead = (level, upright) if draw() < 0.5 else (upright, level)
  if not truth.beside(subject, other, link):
    link = instead  # sprites hardly overlap: one of the two holds
  a, b = _phrase(scene, i, draw), _phrase(scene, j, draw)
  clause = grammar.Clause(a, link, b)
  if (a.number > 1 or b.number > 1) and not truth.holds(clause, scene):
    return grammar.Clause(a._replace(number=1), link, b._replace(number=1))
  return clause


def sample_telling(
  scene: truth.Scene,
  others: list[truth.Scene],
  reference: truth.Evaluator,
  draw: Callable[[], float],
  relation_share: float,
  number: int,
) -> list[grammar.Caption]:
  """Samples `number` captions that tell `scene` apart.

  A caption is kept if it is false of all `others` and of the whole reference
  gallery; after `TRIES` draws, the one true of the fewest is kept.
  """

  def also(clauses: list[grammar.Clause]) -> int:
    count = reference.bits(clauses).bit_count()
    if count == 0:  # the slower check, where it decides
      count = sum(all(truth.holds(c, o) for c in clauses) for o in others)
    return count

  out: list[grammar.Caption] = []
  seen: set[frozenset] = set()
  while len(out) < number:
    best, fewest = None, -1
    for _ in range(TRIES):
      sampled = sample(scene, draw, relation_share, also)
      if sampled is None or frozenset(sampled[0]) in seen:
        continue
      if best is None or sampled[1] < fewest:
        best, fewest = sampled
      if fewest == 0:
        break
    if best is not None:  # otherwise unlucky draws: the stream goes on
      seen.add(frozenset(best))
      out.append(best)
  return out


def sample_unique(
  index: int,
  scene: truth.Scene,
  gallery: truth.Evaluator,
  draw: Callable[[], float],
  relation_share: float,
  previous: list[grammar.Caption],
  number: int,
  tries: int,
) -> list[grammar.Caption]:
  """Samples up to `number` captions true of picture `index` alone.

  Captions of an earlier round, `previous`, stay if they are still unique in the
  gallery. Returns fewer than `number` if `tries` draws were not enough.
  """

  def also(clauses: list[grammar.Clause]) -> int:
    return gallery.bits(clauses).bit_count() - 1

  out = [c for c in previous if gallery.bits(c) == 1 << index]
  seen = {frozenset(c) for c in out}
  for _ in range(tries):
    if len(out) >= number:
      break
    sampled = sample(scene, draw, relation_share, also)
    if sampled and not sampled[1] and frozenset(sampled[0]) not in seen:
      seen.add(frozenset(sampled[0]))
      out.append(sampled[0])
  return out
