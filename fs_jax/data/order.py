"""Which examples step t shows: a function of the seed and t, and of no state.

The promise that a resumed run sees what it would have seen lies here.
"""

import math

import numpy as np
from grain import experimental as grain_experimental

_SHUFFLE_ROUNDS = 4  # of grain's index shuffle, as in its own `shuffle()`


def shuffle(
  seed: int, stream: int, first: int, count: int, n: int
) -> np.ndarray:
  """Rows int64 [count] at places first .. of n rows, shuffled every epoch."""
  # Not the seed itself: the second epoch of seed 0 would be the first of 1.
  key = int(np.random.SeedSequence((seed, stream)).generate_state(1)[0])
  rows = np.empty(count, np.int64)
  for k in range(count):
    epoch, place = divmod(first + k, n)
    rows[k] = grain_experimental.index_shuffle(
      place, n - 1, (key + epoch) % 2**32, _SHUFFLE_ROUNDS
    )
  return rows


def choose(
  key: tuple[int, int], first: int, count: np.ndarray, m: int, most: int
) -> np.ndarray:
  """m of count[k] things for each k: int64 [n,m], no thing twice before all.

  Row k follows from the key and the number first + k alone.

  Args:
    key: seed and stream.
    first: number of the first row.
    count: int [n], each from 1 to `most`.
    m: how many to choose.
    most: a constant of the run: it decides how much a row draws.
  """
  blocks = math.ceil(most / 4)  # Philox draws four numbers at each count
  raw = philox(key, first * blocks).random_raw(len(count) * blocks * 4)
  raw = raw.reshape(len(count), -1)[:, :most]
  raw[np.arange(most) >= count[:, None]] = np.iinfo(np.uint64).max
  order = np.argsort(raw, axis=1, kind="stable")
  return np.take_along_axis(order, np.arange(m) % count[:, None], axis=1)


def philox(key: tuple[int, int], counter: int) -> np.random.Philox:
  """Random numbers by their place in the stream of a key."""
  seed, stream = key
  return np.random.Philox(counter=counter, key=(seed % 2**64) << 64 | stream)


def proportion(row: int, size: int, judged: int) -> int:
  """The row of `judged` rows that `row` is of `size` rows.

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
