"""Queries padded to one of a few batch sizes, each compiled once.

However many queries come at once, they run in batches of `SIZES` rows: a server
that compiled these few programs never waits for the compiler again.
"""

from collections.abc import Iterator

import numpy as np

SIZES = (1, 8, 64, 256)  # rows of a batch


def pad_batches(rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
  """Cuts rows into batches of the largest size and pads the last with zeros.

  No rows at all still give one batch, so that results keep their width.

  Args:
    rows: [Q,...].

  Yields:
    A batch [S,...] with S from `SIZES`, and how many of its rows are not
    padding.
  """
  for start in range(0, max(len(rows), 1), SIZES[-1]):
    batch = rows[start : start + SIZES[-1]]
    size = next(s for s in SIZES if s >= len(batch))
    pad = [(0, size - len(batch))] + [(0, 0)] * (rows.ndim - 1)
    yield np.pad(batch, pad), len(batch)
