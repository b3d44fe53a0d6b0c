"""Exact nearest neighbours in JAX, in bounded memory.

The reference for every index, and the index itself where ScaNN is missing or a
gallery is small. Rows, queries and depths are padded to a few sizes, so that
serving compiles a few programs and not one for every gallery and request.
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

SCORE_BYTES = 1 << 28  # of scores held at once, for a corpus of any size
_DEPTH = 16  # the least number of neighbours compiled for
_ROWS = 256  # the least number of rows compiled for


class Placed(NamedTuple):
  """Vectors on the default device, for any number of calls."""

  vectors: jax.Array  # float32 [rows,E], zeros behind the first `size`
  size: int  # C


def place(vectors: types.Array) -> Placed:
  """Moves float32 [C,E] to the device, padded to one of a few sizes.

  Sizes are sixteenths of powers of two: a sixteenth more rows at most, which is
  what a search then takes longer, and galleries of about a size share programs.
  """
  # On the host: the device would compile the padding for every size.
  given = np.asarray(vectors, np.float32)
  size, width = given.shape
  step = 1 << max(0, (size - 1).bit_length() - 5)
  rows = max(_ROWS, -(-size // step) * step)
  padded = given
  if rows > size:
    padded = np.zeros((rows, width), np.float32)
    padded[:size] = given
  return Placed(jax.device_put(padded), size)


def nearest(
  vectors: Placed | types.Array,
  queries: types.Array,
  k: int,
  *,
  score_bytes: int = SCORE_BYTES,
) -> tuple[np.ndarray, np.ndarray]:
  """Rows int32 and dot products float32 [Q,k], best first, ties by row.

  Args:
    vectors: float32 [C,E]; who asks more than once places them once.
    queries: float32 [Q,E], Q >= 1.
    k: 1..C.
    score_bytes: of the scores held at once.
  """
  placed = vectors if isinstance(vectors, Placed) else place(vectors)
  queries = np.asarray(queries, np.float32)
  depth = _depth(placed, k)
  parts = []
  for batch, count in buckets.pad_batches(queries):
    best = _search_batch(placed, batch, depth, score_bytes)
    parts.append([np.asarray(x)[:count, :k] for x in best])
  scores, rows = (np.concatenate(x) for x in zip(*parts, strict=True))
  return rows, scores


def warm(placed: Placed, k: int, *, score_bytes: int = SCORE_BYTES) -> None:
  """Compiles all that `nearest` needs for any queries and up to k answers."""
  deepest = _depth(placed, min(k, placed.size))
  depth = min(_DEPTH, deepest)
  while True:
    for rows in buckets.SIZES:
      queries = np.zeros((rows, placed.vectors.shape[1]), np.float32)
      jax.block_until_ready(_search_batch(placed, queries, depth, score_bytes))
    if depth == deepest:
      return
    depth = min(2 * depth, deepest)


def _depth(placed: Placed, k: int) -> int:
  rows = placed.vectors.shape[0]
  return min(rows, max(_DEPTH, 1 << (k - 1).bit_length()))


def _search_batch(
  placed: Placed, queries: np.ndarray, depth: int, score_bytes: int
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
  """Scores and rows [Q,depth] of the best; `chunk` rows compared at a time.

  `top_k` prefers the earlier of equal scores, and what was found before stands
  in front of what a later chunk adds: equal scores come out by row. Rows from
  `size` on are padding and score -inf.
  """
  rows = vectors.shape[0]

  def best_of(block: jax.Array, start: Any, new: Any = 0) -> Any:
    # Float32 throughout: accelerators would round the factors to bfloat16.
    scores = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    at = start + jnp.arange(block.shape[0])[None]
    scores = jnp.where((at >= new) & (at < size), scores, -jnp.inf)
    scores, at = jax.lax.top_k(scores, depth)
    return scores, at.astype(jnp.int32) + start

  if rows <= chunk:
    return best_of(vectors, 0)

  def step(i: jax.Array, best: Any) -> tuple[jax.Array, jax.Array]:
    # The last chunk begins earlier, to be whole: some of it was seen before.
    start = jnp.minimum(i * chunk, rows - chunk)
    block = jax.lax.dynamic_slice_in_dim(vectors, start, chunk)
    more = best_of(block, start, i * chunk)
    scores, at = (
      jnp.concatenate(x, axis=1) for x in zip(best, more, strict=True)
    )
    scores, kept = jax.lax.top_k(scores, depth)
    return scores, jnp.take_along_axis(at, kept, axis=1)

  empty = (
    jnp.full((len(queries), depth), -jnp.inf, jnp.float32),
    jnp.full((len(queries), depth), -1, jnp.int32),
  )
  return jax.lax.fori_loop(0, -(-size // chunk), step, empty)


Backend = Literal["exact", "scann"]


class Index(NamedTuple):
  """What answers queries; whoever searches cannot know how.

  `search(queries, k)`: float32 [Q,E], finite, and k >= 1 -> Candidates of NumPy
  arrays [Q,k], best first; rows of -1 with scores of -inf fill up a short row.
  Raises ValueError for anything else.
  """

  search: Callable[[types.Array, int], types.Candidates]
  kind: Backend
  size: int  # C
  width: int  # E
  ids: tuple[str, ...]  # C of them; () where none were given
  contract: dict[str, provenance.Part]
  manifest: dict[str, Any]  # of the folder; {} without one
  # Compiles all that `search` needs for up to k answers to any queries.
  warm: Callable[[int], None]


def index(
  vectors: np.ndarray,
  ids: Sequence[str] = (),
  contract: provenance.Contract | None = None,
  *,
  score_bytes: int = SCORE_BYTES,
) -> Index:
  """Search by all dot products, on the default device; equal scores by row.

  Args:
    vectors: float32 [C,E].
    ids: C of them, or none.
    contract: parts that describe the vectors.
    score_bytes: of the scores held at once.
  """
  size, width = vectors.shape
  placed = place(vectors)
  ask = functools.partial(nearest, placed, score_bytes=score_bytes)
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


def recall(found: np.ndarray, truth: np.ndarray) -> float:
  """Share of the true neighbours that were found: rows [Q,k] both."""
  hits = (found[:, :, None] == truth[:, None, :]).any(axis=1)
  return float(hits.mean())


def search(
  nearest: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]],
  size: int,
  width: int,
  queries: types.Array,
  k: int,
) -> types.Candidates:
  """Checks queries, asks for as many as there are, fills up to k."""
  checked = check_queries(queries, width)
  if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
    raise ValueError(f"k: must be an integer >= 1; got {k!r}. change it")
  rows, scores = nearest(checked, min(int(k), size))
  missing = ((0, 0), (0, int(k) - rows.shape[1]))
  return types.Candidates(
    np.pad(rows.astype(np.int32), missing, constant_values=-1),
    np.pad(scores, missing, constant_values=-np.inf),
  )


def check_queries(given: types.Array, width: int) -> np.ndarray:
  """float32 [Q,width], contiguous; refuses what no index should be asked."""
  queries: np.ndarray = np.asarray(given)
  if queries.ndim != 2 or queries.shape[1] != width:
    raise ValueError(
      f"queries: must be [Q,{width}]; got shape {queries.shape}. encode them "
      f"with the model of the index, one row a query"
    )
  if not len(queries):
    raise ValueError(
      "queries: must have at least one row; got none. leave out the search"
    )
  if queries.dtype.kind != "f" and queries.dtype.name != "bfloat16":
    raise ValueError(
      f"queries: must be floating point; got {queries.dtype}. convert them"
    )
  queries = np.ascontiguousarray(queries, np.float32)
  bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
  if bad.size:
    raise ValueError(
      f"queries: must be finite; got NaN or infinity in row {bad[0]} "
      f"({bad.size} such rows). look at that query"
    )
  return queries
