"""What step t shows, as a function of the seed and t: there is no other state.

Row r of step t has the number t * B + r. Which example, which captions and
which crop it gets follow from the seed and that number alone. This is why a
resumed run sees what an uninterrupted one sees, and why any process can make
any rows of any step. Every random choice of the data is drawn here.
"""

import math

import numpy as np
from grain import experimental as grain_experimental

# Streams of random numbers: a generator's key is the seed and one of these.
SHUFFLE, CAPTION, CROP = 0, 1, 2
CLUSTERS = 3  # added to a stream for the rows of clusters

Key = tuple[int, int]  # seed and stream

_SHUFFLE_ROUNDS = 4  # of grain's index shuffle, as in its own `shuffle()`


def shuffle(
  seed: int, stream: int, first: int, count: int, n: int
) -> np.ndarray:
  """Places first .. of n rows, shuffled anew each epoch: rows int64 [count]."""
  # Not the seed itself: the second epoch of seed 0 would be the first of 1.
  key = int(np.random.SeedSequence((seed, stream)).generate_state(1)[0])
  rows = np.empty(count, np.int64)
  for k in range(count):
    epoch, place = divmod(first + k, n)
    rows[k] = grain_experimental.index_shuffle(
      place, n - 1, (key + epoch) % 2**32, _SHUFFLE_ROUNDS
    )
  return rows


def shuffle_clusters(
  seed: int, numbers: np.ndarray, n: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Places rows in n shuffled clusters of `width` rows.

  Args:
    seed: the run's seed.
    numbers: consecutive numbers of rows.
    n: how many clusters there are.
    width: rows of a cluster.

  Returns:
    The cluster of each row and its column there: int64, shaped as `numbers`.
  """
  place, column = np.divmod(numbers, width)
  first, last = int(place[0]), int(place[-1])
  shuffled = shuffle(seed, SHUFFLE + CLUSTERS, first, last - first + 1, n)
  return shuffled[place - first], column


def choose(
  key: Key, first: int, count: np.ndarray, m: int, most: int
) -> np.ndarray:
  """Chooses m of count[k] things for each k: int64 [n,m].

  No thing is chosen twice before all of them were. Row k is a function of the
  key and the number first + k.

  Args:
    key: seed and stream.
    first: the first row's number.
    count: int [n], each from 1 to `most`.
    m: how many to choose.
    most: a constant of the run: it decides how much a row draws.
  """
  blocks = math.ceil(most / 4)  # Philox draws four numbers per counter
  raw = _philox(key, first * blocks).random_raw(len(count) * blocks * 4)
  raw = raw.reshape(len(count), -1)[:, :most]
  raw[np.arange(most) >= count[:, None]] = np.iinfo(np.uint64).max
  order = np.argsort(raw, axis=1, kind="stable")
  return np.take_along_axis(order, np.arange(m) % count[:, None], axis=1)


def draw_shifts(key: Key, first: int, count: int, most: int) -> np.ndarray:
  """Draws (down, right), each from -most to most pixels: int [count,2]."""
  raw = _philox(key, first).random_raw(4 * count)
  return (raw.reshape(-1, 4)[:, :2] % (2 * most + 1)).astype(int) - most


def make_generator(key: Key, number: int) -> np.random.Generator:
  """A generator of its own for the row of that number."""
  return np.random.Generator(_philox(key, number << 64))


def _philox(key: Key, counter: int) -> np.random.Philox:
  """Random numbers by their place in the stream of a key."""
  seed, stream = key
  return np.random.Philox(counter=counter, key=(seed % 2**64) << 64 | stream)


def scale_row(row: int, size: int, judged: int) -> int:
  """Maps a cut at `row` of `size` rows to the same cut of `judged` rows.

  Raises:
    ValueError: the cut falls between two rows.
  """
  scaled, left = divmod(row * judged, size)
  if left:
    raise ValueError(
      f"distill.clusters: the {judged} rows of clusters must split as the "
      f"{size} rows of the batch do; got a cut at row {row}. make clusters * "
      "cluster_size a multiple of the number of devices"
    )
  return scaled
