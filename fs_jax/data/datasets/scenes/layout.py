"""Arrangements: which kinds appear together, their sizes and places.

Everything is drawn for many pictures at once. Centres keep a margin from the
middle of the canvas, and two centres are either close along an axis or clearly
apart, so that no caption's truth depends on a single pixel.
"""

from typing import NamedTuple

import numpy as np

from fs_jax.data.datasets.scenes import grammar, truth

OBJECTS = (2, 3, 4)
OBJECTS_WEIGHTS = (0.25, 0.4, 0.35)
REPEAT = 0.35  # share of pictures of 3 or 4 objects that repeat a kind
BIG = 0.6  # share of big sprites drawn; 0.4 once all fit
SMALL_PX = (14, 18)  # inclusive
BIG_PX = (24, 30)
PLACE_MARGIN = 4  # px from every centre to a middle line, at least
CLOSE, APART = 4, 8  # px: no two centres are between the two along an axis
OVERLAP = 2  # px that the squares of two sprites may share
WIDTH = max(OBJECTS)


class Layouts(NamedTuple):
  """n pictures of at most 4 objects; kind -1 pads. All int [n, 4], px."""

  kind: np.ndarray
  size: np.ndarray  # side of the sprite's square
  y0: np.ndarray
  x0: np.ndarray


def join(parts: list[Layouts]) -> Layouts:
  """Stacks layouts along the pictures."""
  return Layouts(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def scenes(layouts: Layouts) -> truth.Scenes:
  """What the evaluator sees of the layouts."""
  return truth.Scenes(
    kind=layouts.kind,
    big=layouts.size >= BIG_PX[0],
    y=layouts.y0 + layouts.size / 2,
    x=layouts.x0 + layouts.size / 2,
  )


def things(layouts: Layouts) -> list[truth.Scene]:
  """The same, scene by scene."""
  columns = (part.tolist() for part in scenes(layouts))
  return [
    tuple(
      truth.Thing(*thing) for thing in zip(*rows, strict=True) if thing[0] >= 0
    )
    for rows in zip(*columns, strict=True)
  ]


def assign_pairs(
  seed: int, test_share: float, validation_share: float
) -> np.ndarray:
  """Assigns pairs of kinds to splits: int8 [K,K], symmetric.

  0 is a training pair; 1 is held out for validation, 2 for test.
  """
  upper = np.transpose(np.triu_indices(len(grammar.KINDS), 1))
  order = np.random.default_rng([seed, 0]).permutation(len(upper))
  test = round(test_share * len(upper))
  validation = round(validation_share * len(upper))
  roles = np.zeros((len(grammar.KINDS),) * 2, np.int8)
  for role, chosen in ((2, order[:test]), (1, order[test:][:validation])):
    i, j = upper[chosen].T
    roles[i, j] = roles[j, i] = role
  return roles


def sample_kinds(
  rng: np.random.Generator, n: int, roles: np.ndarray, role: int
) -> np.ndarray:
  """Samples the kinds of n pictures, two or more different ones: int [n,4].

  Role 0: every pair of kinds is a training pair. Role 1: some pair is held out
  for validation, none for test. Role 2: some pair is held out for test.
  """
  total = rng.choice(OBJECTS, n, p=OBJECTS_WEIGHTS)
  fewer = (rng.random(n) < REPEAT) & (total > 2)
  distinct = total - fewer - (fewer & (total > 3) & (rng.random(n) < 0.5))
  wanted = np.transpose(np.nonzero(np.triu(roles == role, 1)))
  chosen = np.zeros((n, WIDTH), int)
  left = np.arange(n)
  while len(left):
    draw = rng.random((len(left), len(grammar.KINDS))).argsort(1)[:, :WIDTH]
    if role:  # begin with a held-out pair; repeated kinds are filtered below
      draw[:, :2] = wanted[rng.integers(len(wanted), size=len(left))]
    used = np.arange(WIDTH) < distinct[left, None]
    pair = used[:, :, None] & used[:, None] & ~np.eye(WIDTH, dtype=bool)
    drawn = roles[draw[:, :, None], draw[:, None]]
    same = (draw[:, :, None] == draw[:, None]) & pair
    allowed = drawn <= 0 if role == 0 else (drawn <= 1 if role == 1 else True)
    good = (allowed | ~pair).all((1, 2)) & ~same.any((1, 2))
    chosen[left[good]] = draw[good]
    left = left[~good]
  # places past the distinct kinds repeat one of them, or stay empty
  place = np.broadcast_to(np.arange(WIDTH), (n, WIDTH))
  again = (rng.random((n, WIDTH)) * np.minimum(distinct, 2)[:, None]).astype(
    int
  )
  kinds = np.take_along_axis(
    chosen, np.where(place < distinct[:, None], place, again), 1
  )
  return np.where(place < total[:, None], kinds, -1)


def sample_slots(
  rng: np.random.Generator, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Samples sprites that fit: present bool [n,4] -> sizes, y0, x0 int [n,4]."""
  out = np.zeros((3, *present.shape), int)
  left = np.arange(len(present))
  tries = 8
  while len(left):
    shape = (len(left), tries, WIDTH)
    big = rng.random(shape) < BIG
    size = np.where(
      big,
      rng.integers(BIG_PX[0], BIG_PX[1] + 1, shape),
      rng.integers(SMALL_PX[0], SMALL_PX[1] + 1, shape),
    )
    # A corner stays this near its edge, so that the centre keeps the margin.
    room = (truth.CANVAS - size) // 2 - PLACE_MARGIN + 1
    yx = (rng.random((2, *shape)) * room).astype(int)
    yx = np.where(rng.random(yx.shape) < 0.5, yx, truth.CANVAS - size - yx)
    good = _valid(size, yx + size / 2, present[left, None])
    first = good.argmax(1)
    row = np.arange(len(left))
    done = good[row, first]
    picked = np.stack([size, *yx])[:, row, first]
    out[:, left[done]] = picked[:, done]
    left = left[~done]
  return tuple(out * present)


def _valid(
  size: np.ndarray, centre: np.ndarray, present: np.ndarray
) -> np.ndarray:
  """Whether all pairs keep their distance: sizes [...,4], centres [2,...,4]."""
  apart = np.abs(centre[..., :, None] - centre[..., None, :])
  touch = (size[..., :, None] + size[..., None, :]) / 2 - OVERLAP
  fits = (apart >= touch).any(0)
  clear = ((apart <= CLOSE) | (apart >= APART)).all(0)
  pair = present[..., :, None] & present[..., None, :]
  pair = pair & np.triu(np.ones((WIDTH, WIDTH), bool), 1)
  return (fits & clear | ~pair).all((-1, -2))


def sample(rng: np.random.Generator, kinds: np.ndarray) -> Layouts:
  """Samples one arrangement for each row of kinds int [n,4]."""
  return Layouts(kinds, *sample_slots(rng, kinds >= 0))


def sample_groups(rng: np.random.Generator, kinds: np.ndarray) -> list[Layouts]:
  """Samples four arrangements of kinds int [n,4]: `out[i]` holds the i-th.

  1 and 3 are 0 and 2 with the kinds permuted over the same places: nothing else
  differs.
  """
  out = []
  for _ in range(2):
    layouts = sample(rng, kinds)
    out += [layouts, layouts._replace(kind=_permute(rng, layouts.kind))]
  return out


def _permute(rng: np.random.Generator, kinds: np.ndarray) -> np.ndarray:
  """Permutes the kinds of each row, never into the same row."""
  out = kinds.copy()
  left = np.arange(len(kinds))
  while len(left):
    keys = np.where(kinds[left] >= 0, rng.random((len(left), WIDTH)), 2.0)
    out[left] = np.take_along_axis(kinds[left], keys.argsort(1), 1)
    left = left[(out[left] == kinds[left]).all(1)]
  return out
