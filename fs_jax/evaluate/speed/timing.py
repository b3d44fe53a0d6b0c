"""Speed, as ratios of two things measured in the same run.

Absolute times on a shared machine mean little. A share of the speed that the
same machine reached a moment before, in a plain matrix product, is comparable.
"""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fs_jax import config, types
from fs_jax.gallery import exact as exact_search
from fs_jax.gallery import index, tuner
from fs_jax.machine import compile_cache, sharding
from fs_jax.models import slow as slow_models
from fs_jax.search import scorer
from fs_jax.train import losses, ring

RUNS = 20
CHUNK = 1024  # rows of a loss's tile: its 4 MB stay in a cache


def median_seconds(
  run: Callable[[], Any], runs: int = RUNS, *, name: str
) -> float:
  """Median wall time of a call, after a first one that is not counted.

  Raises:
    RuntimeError: a counted call compiled something.
  """
  jax.block_until_ready(run())
  times = []
  for _ in range(runs):
    with compile_cache.timed(name) as region:
      jax.block_until_ready(run())
    times.append(region.elapsed)
  return float(np.median(times))


def measure_matmul(dtype: jnp.dtype, size: int = 2048) -> float:
  """FLOP/s of a plain square matrix product, measured now, summed in float32.

  The models sum in float32 too; on a CPU, rounding to bfloat16 inside the
  product costs more.
  """
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(
    lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32)
  )
  return 2 * size**3 / median_seconds(lambda: product(a), name="matrix product")


def measure_rerank(
  *,
  width: int = 768,
  layers: int = 12,
  words: int = 32,
  tokens: int = 196,
  pairs: int = 16,
  compute: str = "float32",
) -> dict[str, float]:
  """Slow's speed on the code path of retrieval, with random parameters.

  Args:
    width: the decoder's width; heads have 64.
    layers: the decoder's layers, all crossed, on one level.
    words: a text's length L; both reading directions are scored.
    tokens: visual tokens per visual, a square number.
    pairs: candidates of one query, scored in one call.
    compute: the model's dtype.
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
  mask = jnp.ones(latent.shape[:2], bool)
  memory = types.Memory((types.Level(latent, mask),))
  score = jax.jit(functools.partial(scorer.score_pairs, model))
  which = np.zeros(pairs, np.int32)
  peak = measure_matmul(jnp.dtype(compute))
  seconds = median_seconds(
    lambda: score(params, memory, text, which), name="rerank"
  )
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
  per_word = 4 * d * d + 2 * d * cfg.decoder.hidden  # self-attention, MLP
  per_word += 2 * i * d  # scores and mix of self-attention
  per_word += 2 * d * latent + 2 * tokens * latent  # cross-attention
  total = cfg.decoder.layers * per_word + d * vocabulary
  return 2.0 * slow_models.DIRECTIONS * i * total


def measure_search(
  rows: int, *, width: int = 256, queries: int = 256
) -> dict[str, Any]:
  """Exact JAX and ScaNN on clustered vectors: queries/s and recall by k."""
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(max(rows // 25, 1), width))
  owner = rng.integers(len(centres), size=rows)
  vectors = _unit(centres[owner] + 0.7 * rng.normal(size=(rows, width)))
  sample = _unit(centres[rng.integers(len(centres), size=queries)])
  exact = exact_search.make_index(vectors)
  result: dict[str, Any] = {"rows": rows}
  for name, searcher in (("exact", exact), ("scann", _scann(vectors))):
    if searcher is None:
      continue
    for k in tuner.RECALL_DEPTHS:
      for count in (1, queries):
        run = functools.partial(_search, searcher, sample[:count], k)
        seconds = median_seconds(run, name=f"search by {name}")
        result[f"{name}_qps_{count}_at_{k}"] = count / seconds
      listed, nearest = (
        np.asarray(_search(x, sample, k)) for x in (searcher, exact)
      )
      result[f"{name}_recall_at_{k}"] = exact_search.measure_recall(
        listed, nearest
      )
    if searcher.manifest:
      result["settings"] = searcher.manifest["settings"]
      result["warning"] = searcher.manifest["warning"]
  return result


def measure_loss(
  batch: int = 32_768,
  *,
  embed: int = 512,
  chunk: int = CHUNK,
  kind: str = "softmax",
  runs: int = 3,
) -> dict[str, float]:
  """A contrastive loss and its gradient: all pairs at once, tiles, a ring.

  The plain and the chunked loss run on one device, the ring on all devices if
  there are several. Bytes are what the compiled program reserves on a device,
  without arguments and results. The plain loss is timed only if its bytes and a
  quarter more are free.

  Args:
    batch: pairs of a visual and a text.
    embed: the embeddings' width.
    chunk: rows per tile.
    kind: config.Fast.loss, softmax or sigmoid.
    runs: timed calls, after one that is not timed.
  """
  name, scalars = {
    "softmax": ("info_nce", (14.0,)),
    "sigmoid": ("sigmoid", (10.0, -10.0)),
  }[kind]
  plain, tiled = getattr(losses, name), getattr(ring, name)
  devices = jax.devices()
  meshes = {"chunked": devices[:1], "ring": devices, "plain": devices[:1]}
  if len(devices) == 1:
    del meshes["ring"]
  cost: dict[str, float] = {}
  for variant, used in meshes.items():
    mesh = sharding.mesh(config.Mesh(-1, 1, 1), used)
    loss = functools.partial(tiled, mesh=mesh, chunk=chunk)
    args = _random_pairs(batch, embed, scalars, mesh)
    step, size = _compile(plain if variant == "plain" else loss, args)
    cost[f"{variant}_bytes"] = size
    # Leaves some memory to other processes.
    if variant != "plain" or size < 0.8 * free_bytes():
      cost[f"{variant}_seconds"] = median_seconds(
        functools.partial(step, *args), runs, name=f"loss, {variant}"
      )
  for variant in meshes.keys() - {"plain"}:
    for unit in ("bytes", "seconds"):
      if f"plain_{unit}" in cost:
        ratio = cost[f"{variant}_{unit}"] / cost[f"plain_{unit}"]
        cost[f"{variant}_{unit}_of_plain"] = ratio
  return cost


def _random_pairs(
  batch: int, embed: int, scalars: tuple[float, ...], mesh: Mesh
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
  """Floats and ids of random pairs on a mesh, all rows different."""
  rng = np.random.default_rng(0)
  sides = [_unit(rng.normal(size=(batch, embed))) for _ in range(2)]
  ids = np.arange(batch, dtype=np.int32)
  rows = sharding.put(
    (*sides, ids, ids, np.ones(batch, bool)), sharding.batch(mesh)
  )
  return (*rows[:2], *map(jnp.float32, scalars)), rows[2:]


def _compile(
  loss: Callable[..., Any],
  args: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]],
) -> tuple[Callable[..., Any], int]:
  """Value and gradients by all float arguments; bytes of intermediates."""

  def value(floats: tuple[jax.Array, ...], ids: tuple[jax.Array, ...]) -> Any:
    visual, text, *scalars = floats
    return loss(losses.Pairs(visual, text, *ids), *scalars)

  step = jax.jit(jax.value_and_grad(value, has_aux=True))
  compiled = step.lower(*args).compile()
  memory: Any = compiled.memory_analysis()
  return compiled, memory.temp_size_in_bytes


def free_bytes() -> float:
  """Free memory of the first device; 0 if unknown."""
  stats = jax.devices()[0].memory_stats()
  if stats:
    return stats["bytes_limit"] - stats["bytes_in_use"]
  host = pathlib.Path("/proc/meminfo")
  if not host.exists():
    return 0
  kilobytes = re.findall(r"MemAvailable:\s*(\d+)", host.read_text())
  return 1024 * int(kilobytes[0])


def _search(
  searcher: exact_search.Index, queries: np.ndarray, k: int
) -> types.Array:
  return searcher.search(queries, k).rows


def _scann(vectors: np.ndarray) -> exact_search.Index | None:
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    ids = tuple(str(i) for i in range(len(vectors)))
    corpus = types.Corpus(vectors, ids)
    manifest = index.build(corpus, f"{folder}/index", {})
    if manifest["backend"] != "scann":
      return None
    return index.load(f"{folder}/index")


def _unit(x: np.ndarray) -> np.ndarray:
  x = x.astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)
