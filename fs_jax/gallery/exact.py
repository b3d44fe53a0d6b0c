"""Exact nearest neighbours in JAX, in bounded memory.

It is the reference for every index, and the index itself if ScaNN is missing.
Rows, queries and depths are padded to a few sizes, so that serving compiles a
few programs and not one for every gallery and request.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fs_jax import types
from fs_jax.gallery import buckets
from fs_jax.machine import provenance

SCORE_BYTES = 1 << 28  # scores held at once, whatever the size of the corpus
_DEPTH = 16  # the least number of neighbours compiled for
_ROWS = 256  # the least number of rows compiled for


class DeviceVectors(NamedTuple):
  """Vectors on the default device, for any number of calls."""

  vectors: jax.Array  # float32 [rows,E], zeros after the first `size`
  size: int  # C


def place(vectors: types.Array) -> DeviceVectors:
  """Moves float32 [C,E] to the device, padded to one of a few sizes.

  Sizes are multiples of a sixteenth of a power of two. Padding adds at most a
  sixteenth to the rows and to the time of a search, and galleries of about the
  same size share programs.
  """
  # On the host: the device would compile the padding for every size.
  padded = np.asarray(vectors, np.float32)
  size = len(padded)
  step = 1 << max(0, (size - 1).bit_length() - 5)
  rows = max(_ROWS, -(-size // step) * step)
  if rows > size:
    padded = np.pad(padded, ((0, rows - size), (0, 0)))
  return DeviceVectors(jax.device_put(padded), size)


def find_nearest(
  vectors: DeviceVectors | types.Array,
  queries: types.Array,
  k: int,
  *,
  score_bytes: int = SCORE_BYTES,
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the k rows with the largest dot products.

  Args:
    vectors: float32 [C,E]; `place` them first for more than one call.
    queries: float32 [Q,E], Q >= 1.
    k: 1..C.
    score_bytes: the size of the scores held at once.

  Returns:
    Rows int32 [Q,k] and dot products float32 [Q,k], best first, ties by row.
  """
  placed = vectors if isinstance(vectors, DeviceVectors) else place(vectors)
  queries = np.asarray(queries, np.float32)
  depth = _depth(placed, k)
  parts = []
  for batch, count in buckets.pad_batches(queries):
    best = _search_batch(placed, batch, depth, score_bytes)
    parts.append([np.asarray(x)[:count, :k] for x in best])
  scores, rows = (np.concatenate(x) for x in zip(*parts, strict=True))
  return rows, scores


def warm(
  placed: DeviceVectors, k: int, *, score_bytes: int = SCORE_BYTES
) -> None:
  """Compiles all that `find_nearest` needs for any queries and k or fewer."""
  deepest = _depth(placed, min(k, placed.size))
  depth = min(_DEPTH, deepest)
  while True:
    for rows in buckets.SIZES:
      queries = np.zeros((rows, placed.vectors.shape[1]), np.float32)
      jax.block_until_ready(_search_batch(placed, queries, depth, score_bytes))
    if depth == deepest:
      return
    depth = min(2 * depth, deepest)


def _depth(placed: DeviceVectors, k: int) -> int:
  rows = placed.vectors.shape[0]
  return min(rows, max(_DEPTH, 1 << (k - 1).bit_length()))


def _search_batch(
  placed: DeviceVectors, queries: np.ndarray, depth: int, score_bytes: int
) -> tuple[jax.Array, jax.Array]:
  rows = placed.vectors.shape[0]
  chunk = min(rows, max(depth, score_bytes // (4 * len(queries))))
  size = np.int32(placed.size)
  return _top_k(placed.vectors, queries, size, depth=depth, chunk=chunk)


@functools.partial(jax.jit, static_argnames=("depth", "chunk"))
def _top_k(
  vectors: jax.Array,
  queries: jax.Array,
  size: jax.Array,
  *,
  depth: int,
  chunk: int,
) -> tuple[jax.Array, jax.Array]:
  """Scores and rows [Q,depth] of the best, comparing `chunk` rows at a time.

  Equal scores come out by row: `top_k` prefers the earlier of two, and the
  results of earlier chunks stand in front of those of later ones. Rows from
  `size` on are padding and score -inf.
  """
  rows = vectors.shape[0]

  def best_of(
    block: jax.Array, start: jax.Array | int, new: jax.Array | int = 0
  ) -> tuple[jax.Array, jax.Array]:
    # Float32 throughout: accelerators would round the factors to bfloat16.
    scores = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    at = start + jnp.arange(block.shape[0])[None]
    scores = jnp.where((at >= new) & (at < size), scores, -jnp.inf)
    scores, at = jax.lax.top_k(scores, depth)
    return scores, at.astype(jnp.int32) + start

  if rows <= chunk:
    return best_of(vectors, 0)

  def step(
    i: jax.Array, best: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    # The last chunk starts early, to be whole: `new` masks rows seen before.
    start = jnp.minimum(i * chunk, rows - chunk)
    block = jax.lax.dynamic_slice_in_dim(vectors, start, chunk)
    more = best_of(block, start, i * chunk)
    scores, at = (
      jnp.concatenate(x, axis=1) for x in zip(best, more, strict=True)
    )
    scores, places = jax.lax.top_k(scores, depth)
    return scores, jnp.take_along_axis(at, places, axis=1)

  empty = (
    jnp.full((len(queries), depth), -jnp.inf, jnp.float32),
    jnp.full((len(queries), depth), -1, jnp.int32),
  )
  return jax.lax.fori_loop(0, -(-size // chunk), step, empty)


Backend = Literal["exact", "scann"]


class Index(NamedTuple):
  """An index of either backend, which callers cannot tell apart.

  `search(queries, k)` takes finite float32 [Q,E] and k >= 1, and returns
  Candidates of NumPy arrays [Q,k], best first. Short rows are filled with row
  -1 and score -inf. It raises ValueError for anything else.
  """

  search: Callable[[types.Array, int], types.Candidates]
  kind: Backend
  size: int  # C
  width: int  # E
  ids: tuple[str, ...]  # C of them, or () if none were given
  contract: dict[str, provenance.Part]
  manifest: dict[str, Any]  # the folder's manifest; {} without a folder
  # Compiles all that `search` needs for up to k answers to any queries.
  warm: Callable[[int], None]


def make_index(
  vectors: np.ndarray,
  ids: Sequence[str] = (),
  contract: provenance.Contract | None = None,
  *,
  score_bytes: int = SCORE_BYTES,
) -> Index:
  """An index that compares all vectors, on the default device.

  Args:
    vectors: float32 [C,E].
    ids: C ids, or none.
    contract: the vectors' contract.
    score_bytes: the size of the scores held at once.
  """
  size, width = vectors.shape
  placed = place(vectors)
  ask = functools.partial(find_nearest, placed, score_bytes=score_bytes)
  return Index(
    functools.partial(search, ask, size, width),
    "exact",
    size,
    width,
    tuple(ids),
    {name: dict(part) for name, part in (contract or {}).items()},
    {},
    functools.partial(warm, placed, score_bytes=score_bytes),
  )


def measure_recall(rows: np.ndarray, truth: np.ndarray) -> float:
  """The share of true neighbours that an index returned.

  Args:
    rows: the index's rows [Q,k].
    truth: rows [Q,k] of exact search.
  """
  hits = (rows[:, :, None] == truth[:, None, :]).any(axis=1)
  return float(hits.mean())


def search(
  nearest: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]],
  size: int,
  width: int,
  queries: types.Array,
  k: int,
) -> types.Candidates:
  """Checks queries, finds up to k neighbours and fills short rows.

  Args:
    nearest: (queries, k) -> rows and scores [Q,k], for k up to `size`.
    size: rows of the index.
    width: the vectors' length, E.
    queries: [Q,E].
    k: answers per query.

  Raises:
    ValueError: as `check_queries`; k that is not an integer >= 1.
  """
  checked = check_queries(queries, width)
  if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
    raise ValueError(f"k: must be an integer >= 1; got {k!r}. pass k=1 or more")
  rows, scores = nearest(checked, min(int(k), size))
  missing = ((0, 0), (0, int(k) - rows.shape[1]))
  return types.Candidates(
    np.pad(rows.astype(np.int32), missing, constant_values=-1),
    np.pad(scores, missing, constant_values=-np.inf),
  )


def check_queries(queries: types.Array, width: int) -> np.ndarray:
  """Converts queries to contiguous float32 [Q,width].

  Raises:
    ValueError: another shape, no rows, not floating point, or not finite.
  """
  queries = np.asarray(queries)
  if queries.ndim != 2 or queries.shape[1] != width:
    raise ValueError(
      f"queries: must be [Q,{width}]; got shape {queries.shape}. encode them "
      f"with the model of the index, one row a query"
    )
  if not len(queries):
    raise ValueError(
      "queries: must have at least one row; got none. skip the search if there "
      "are no queries"
    )
  if queries.dtype.kind != "f" and queries.dtype.name != "bfloat16":
    raise ValueError(
      f"queries: must be floating point; got {queries.dtype}. convert them "
      "to float32"
    )
  queries = np.ascontiguousarray(queries, np.float32)
  bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
  if bad.size:
    raise ValueError(
      f"queries: must be finite; got NaN or infinity in row {bad[0]} "
      f"({bad.size} such rows). look at that query"
    )
  return queries
