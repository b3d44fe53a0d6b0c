"""Speed, as ratios of two things measured in one run.

Absolute times on a shared machine mean little; a share of what the same
machine does in a plain matrix product, a moment before, can be compared.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fs_jax import config, index, rerank, types
from fs_jax.models import slow as slow_models

RUNS = 20


def median_seconds(run: Callable[[], Any], runs: int = RUNS) -> float:
  """Median wall time of a call, the first one left out."""
  jax.block_until_ready(run())
  times = []
  for _ in range(runs):
    began = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - began)
  return float(np.median(times))


def matmul_flops(dtype: jnp.dtype, size: int = 2048) -> float:
  """FLOP/s of a plain square matrix product here and now."""
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(lambda x: x @ x)
  return 2 * size**3 / median_seconds(lambda: product(a))


def rerank_speed(
  *,
  width: int = 768,
  layers: int = 12,
  words: int = 32,
  tokens: int = 196,
  pairs: int = 16,
  compute: str = "float32",
) -> dict[str, float]:
  """Slow's scores on the code path of retrieval, random parameters.

  Args:
    width: of the decoder; heads of 64.
    layers: all crossed, one level.
    words: L of a text, both readings are scored.
    tokens: a visual keeps; a square.
    pairs: scored in one call: candidates of one query.
    compute: dtype of the model.
  """
  side = round(tokens**0.5)
  stack = config.Stack(width, layers, width // 64, 4 * width)
  cfg = config.Slow(config.Vision(stack, 16), stack, text_layers=0, d_mem=64)
  model = slow_models.Slow(cfg, 32_000, words, jnp.dtype(compute))
  text = np.full((1, words), 7, np.int32)
  pixels = jnp.zeros((1, 1, 16 * side, 16 * side, 3))
  params = jax.jit(model.init)(jax.random.key(0), pixels, text)["params"]
  params = {k: v for k, v in params.items() if k != "encoder"}
  key = jax.random.key(1)
  latent = jax.random.normal(key, (pairs, side * side, cfg.d_mem))
  seen = jnp.ones(latent.shape[:2], bool)
  memory = types.Memory((types.Level(latent, seen),))
  score = jax.jit(lambda p, m, t: rerank.score_pairs(model, p, m, t))
  peak = matmul_flops(jnp.dtype(compute))
  seconds = median_seconds(lambda: score(params, memory, text))
  flops = pairs * pair_flops(cfg, 32_000, words, side * side)
  return {
    "pairs_per_second": pairs / seconds,
    "gflops_per_pair": flops / pairs / 1e9,
    "matmul_gflops_per_second": peak / 1e9,
    "share_of_matmul": flops / seconds / peak,
  }


def pair_flops(
  cfg: config.Slow, vocabulary: int, words: int, tokens: int
) -> float:
  """Multiplications and additions of one scored pair, matrix products only."""
  d, i = cfg.decoder.width, words - 1
  latent = cfg.decoder.heads * cfg.d_mem
  per_word = 4 * d * d + 2 * d * cfg.decoder.hidden  # own attention, MLP
  per_word += 2 * i * d  # scores and mix of own attention
  per_word += 2 * d * latent + 2 * tokens * latent  # over the visual
  total = cfg.decoder.layers * per_word + d * vocabulary
  return 2.0 * slow_models.DIRECTIONS * i * total


def search_speed(
  rows: int, *, width: int = 256, queries: int = 256, k: int = 100
) -> dict[str, Any]:
  """Exact JAX and ScaNN on clustered vectors: queries/s and recall@k."""
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(max(rows // 25, 1), width))
  owner = rng.integers(len(centres), size=rows)
  vectors = _unit(centres[owner] + 0.7 * rng.normal(size=(rows, width)))
  asked = _unit(centres[rng.integers(len(centres), size=queries)])
  exact = index.exact(vectors)
  found = np.asarray(exact.search(asked, k).rows)
  result: dict[str, Any] = {"rows": rows}
  for name, searcher in (("exact", exact), ("scann", _scann(vectors))):
    if searcher is None:
      continue
    for count in (1, queries):
      run = functools.partial(_found, searcher, asked[:count], k)
      seconds = median_seconds(run)
      result[f"{name}_qps_{count}"] = count / seconds
    listed = np.asarray(searcher.search(asked, k).rows)
    result[f"{name}_recall"] = index.recall(listed, found)
  return result


def _found(searcher: index.Index, asked: np.ndarray, k: int) -> types.Array:
  return searcher.search(asked, k).rows


def _scann(vectors: np.ndarray) -> index.Index | None:
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    ids = tuple(str(i) for i in range(len(vectors)))
    made = index.build(types.Corpus(vectors, ids), f"{folder}/index", {})
    if made["backend"] != "scann":
      return None
    return index.load(f"{folder}/index")


def _unit(x: np.ndarray) -> np.ndarray:
  x = x.astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)
