"""Exact nearest neighbours in JAX, in bounded memory.

The reference for every index, and the index itself where ScaNN is missing or a
gallery is small. Queries and depths are padded to a few sizes, so that serving
compiles a few programs and not one for every request.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fs_jax import types

SCORE_BYTES = 1 << 28  # of scores held at once, for a corpus of any size
_BUCKETS = (1, 8, 64, 256)  # queries are padded to one of these
_DEPTH = 16  # the least number of neighbours compiled for


def nearest(
  vectors: types.Array,
  queries: np.ndarray,
  k: int,
  *,
  score_bytes: int = SCORE_BYTES,
) -> tuple[np.ndarray, np.ndarray]:
  """Rows int32 and dot products float32 [Q,k], best first, ties by row.

  Args:
    vectors: float32 [C,E].
    queries: float32 [Q,E], Q >= 1.
    k: 1..C.
    score_bytes: of the scores held at once.
  """
  size = vectors.shape[0]
  depth = min(size, max(_DEPTH, 1 << (k - 1).bit_length()))
  parts = []
  for start in range(0, len(queries), _BUCKETS[-1]):
    part = queries[start : start + _BUCKETS[-1]]
    bucket = next(b for b in _BUCKETS if b >= len(part))
    padded = np.pad(part, ((0, bucket - len(part)), (0, 0)))
    chunk = min(size, max(depth, score_bytes // (4 * bucket)))
    found = _top_k(vectors, padded, depth=depth, chunk=chunk)
    parts.append([np.asarray(x)[: len(part), :k] for x in found])
  scores, rows = (np.concatenate(x) for x in zip(*parts, strict=True))
  return rows, scores


@functools.partial(jax.jit, static_argnames=("depth", "chunk"))
def _top_k(
  vectors: jax.Array, queries: jax.Array, *, depth: int, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """Scores and rows [Q,depth] of the best; `chunk` rows compared at a time.

  `top_k` prefers the earlier of equal scores, and what was found before stands
  in front of what a later chunk adds: equal scores come out by row.
  """
  size = vectors.shape[0]

  def best_of(block: jax.Array, start: Any) -> tuple[jax.Array, jax.Array]:
    # Float32 throughout: accelerators would round the factors to bfloat16.
    scores = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    scores, at = jax.lax.top_k(scores, min(depth, block.shape[0]))
    return scores, at.astype(jnp.int32) + start

  if size <= chunk:
    return best_of(vectors, 0)

  def merge(best: Any, more: Any) -> tuple[jax.Array, jax.Array]:
    scores, rows = (
      jnp.concatenate(x, axis=1) for x in zip(best, more, strict=True)
    )
    scores, at = jax.lax.top_k(scores, depth)
    return scores, jnp.take_along_axis(rows, at, axis=1)

  def step(i: jax.Array, best: Any) -> tuple[jax.Array, jax.Array]:
    block = jax.lax.dynamic_slice_in_dim(vectors, i * chunk, chunk)
    return merge(best, best_of(block, i * chunk))

  whole, rest = divmod(size, chunk)
  empty = (
    jnp.full((len(queries), depth), -jnp.inf, jnp.float32),
    jnp.full((len(queries), depth), -1, jnp.int32),
  )
  best = jax.lax.fori_loop(0, whole, step, empty)
  if rest:
    best = merge(best, best_of(vectors[size - rest :], size - rest))
  return best
