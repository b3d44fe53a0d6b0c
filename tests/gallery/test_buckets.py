"""Any number of rows in a few batch sizes."""

import numpy as np
import pytest

from fs_jax.gallery import buckets


@pytest.mark.parametrize(
  ("count", "sizes"),
  [
    (0, [1]),
    (1, [1]),
    (2, [8]),
    (8, [8]),
    (9, [64]),
    (65, [256]),
    (256, [256]),
    (257, [256, 1]),
    (600, [256, 256, 256]),
  ],
)
def test_batches_hold_every_row_once_and_zeros_behind(count, sizes):
  rows = 1 + np.arange(3 * count, dtype=np.int32).reshape(count, 3)
  batches = list(buckets.pad_batches(rows))
  assert [len(batch) for batch, _ in batches] == sizes
  assert sum(kept for _, kept in batches) == count
  whole = np.concatenate([batch[:kept] for batch, kept in batches])
  np.testing.assert_array_equal(whole, rows)
  assert whole.dtype == rows.dtype and whole.shape[1:] == (3,)
  assert not any(batch[kept:].any() for batch, kept in batches)


def test_rows_may_have_any_shape():
  ((batch, kept),) = buckets.pad_batches(np.ones((3, 2, 4, 5)))
  assert batch.shape == (8, 2, 4, 5) and kept == 3
