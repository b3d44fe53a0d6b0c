"""Bootstrap intervals of a mean over queries, with images as the unit.

Captions of one image succeed and fail together, so images are drawn with
replacement, each with all of its queries.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Interval(NamedTuple):
  """A mean, and the bounds it stays in when other images are drawn."""

  value: float
  low: float
  high: float


class Bootstrap(NamedTuple):
  """How intervals are drawn.

  Args:
    samples: bootstrap draws.
    seed: equal seeds give equal intervals.
    level: share of draws inside the interval.
  """

  samples: int = 2000
  seed: int = 0
  level: float = 0.95


DEFAULT = Bootstrap()


def interval(
  values: Float[np.ndarray, " Q"],
  clusters: Int[np.ndarray, " Q"],
  bootstrap: Bootstrap = DEFAULT,
) -> Interval:
  """Mean over queries and its percentile bootstrap interval over clusters.

  If all queries agree there is nothing to draw, and the interval is a point,
  whatever the truth.

  Args:
    values: one number per query.
    clusters: equal for queries about the same image.
    bootstrap: how the interval is drawn.

  Raises:
    ValueError: values that are not finite, or fewer than two clusters.
  """
  values, clusters = np.asarray(values, np.float64), np.asarray(clusters)
  _check(values, clusters, bootstrap)
  _, of_query, counts = np.unique(
    clusters, return_inverse=True, return_counts=True
  )
  if len(counts) < 2:
    raise ValueError(
      f"clusters: an interval needs at least 2; got {len(counts)}. "
      "evaluate more images"
    )
  sums = np.bincount(of_query, weights=values)
  samples, seed, level = bootstrap
  rng = np.random.default_rng(seed)
  block = max(1, 2**20 // len(counts))  # bounds the memory, not the result
  means = []
  for start in range(0, samples, block):
    size = (min(block, samples - start), len(counts))
    drawn = rng.integers(len(counts), size=size)
    means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
  tail = (1 - level) / 2
  low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
  return Interval(float(values.mean()), float(low), float(high))


def paired_interval(
  a: Float[np.ndarray, " Q"],
  b: Float[np.ndarray, " Q"],
  clusters: Int[np.ndarray, " Q"],
  bootstrap: Bootstrap = DEFAULT,
) -> Interval:
  """`interval` of the mean of a - b: two rankers on the same queries.

  Raises:
    ValueError: as `interval`, or values of different queries.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape:
    raise ValueError(
      f"b: must have the queries of a, {a.shape}; got {b.shape}. evaluate "
      "both on the same queries"
    )
  return interval(a - b, clusters, bootstrap)


def _check(
  values: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap
) -> None:
  if values.ndim != 1 or values.shape != clusters.shape:
    raise ValueError(
      f"clusters: one per value of [Q]; got {clusters.shape} for "
      f"{values.shape}. give both the same length"
    )
  bad = ~np.isfinite(values)
  if bad.any():
    raise ValueError(
      f"values: must be finite; got {int(bad.sum())} of {len(bad)} queries "
      f"that break it, first query {int(bad.argmax())}. leave these queries "
      "out of values and clusters"
    )
  samples, _, level = bootstrap
  if samples < 1 or not 0 < level < 1:
    raise ValueError(
      "samples, level: must be >= 1 and inside (0, 1); got "
      f"{samples}, {level}. pass values in these ranges, such as 2000, 0.95"
    )
