"""Speed, as ratios of two things measured in one run.

Absolute times on a shared machine mean little; a share of what the same
machine does in a plain matrix product, a moment before, can be compared.
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
CHUNK = 1024  # of a loss: a tile of 4 MB stays in a cache


def median_seconds(
  run: Callable[[], Any], runs: int = RUNS, *, name: str
) -> float:
  """Median wall time of a call, the first one left out.

  Raises:
    RuntimeError: a later call compiled something.
  """
  jax.block_until_ready(run())
  times = []
  for _ in range(runs):
    with compile_cache.timed(name) as region:
      jax.block_until_ready(run())
    times.append(region.elapsed)
  return float(np.median(times))


def matmul_flops(dtype: jnp.dtype, size: int = 2048) -> float:
  """FLOP/s of a plain square matrix product here and now, summed in float32.

  As the models sum: rounding to bfloat16 inside the product costs a CPU more.
  """
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(
    lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32)
  )
  return 2 * size**3 / median_seconds(lambda: product(a), name="matrix product")


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
  score = jax.jit(functools.partial(scorer.score_pairs, model))
  which = np.zeros(pairs, np.int32)
  peak = matmul_flops(jnp.dtype(compute))
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
  per_word = 4 * d * d + 2 * d * cfg.decoder.hidden  # own attention, MLP
  per_word += 2 * i * d  # scores and mix of own attention
  per_word += 2 * d * latent + 2 * tokens * latent  # over the visual
  total = cfg.decoder.layers * per_word + d * vocabulary
  return 2.0 * slow_models.DIRECTIONS * i * total


def search_speed(
  rows: int, *, width: int = 256, queries: int = 256
) -> dict[str, Any]:
  """Exact JAX and ScaNN on clustered vectors: queries/s and recall by depth."""
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(max(rows // 25, 1), width))
  owner = rng.integers(len(centres), size=rows)
  vectors = _unit(centres[owner] + 0.7 * rng.normal(size=(rows, width)))
  asked = _unit(centres[rng.integers(len(centres), size=queries)])
  exact = exact_search.index(vectors)
  result: dict[str, Any] = {"rows": rows}
  for name, searcher in (("exact", exact), ("scann", _scann(vectors))):
    if searcher is None:
      continue
    for k in tuner.AT:
      for count in (1, queries):
        run = functools.partial(_found, searcher, asked[:count], k)
        seconds = median_seconds(run, name=f"search by {name}")
        result[f"{name}_qps_{count}_at_{k}"] = count / seconds
      listed, found = (
        np.asarray(x.search(asked, k).rows) for x in (searcher, exact)
      )
      result[f"{name}_recall_at_{k}"] = exact_search.recall(listed, found)
    if searcher.manifest:
      result["settings"] = searcher.manifest["settings"]
      result["warning"] = searcher.manifest["warning"]
  return result


def loss_cost(
  batch: int = 32_768,
  *,
  embed: int = 512,
  chunk: int = CHUNK,
  kind: str = "softmax",
  runs: int = 3,
) -> dict[str, float]:
  """A contrastive loss and its gradient: all pairs at once, tiles, a ring.

  Plain and chunked run on one device, the ring on all where there are several.
  Bytes are what the compiled program sets aside on a device, arguments and
  results left out. The plain loss is timed only if its bytes are free, and a
  quarter more.

  Args:
    batch: pairs of a visual and a text.
    embed: width of their embeddings.
    chunk: rows of a tile.
    kind: config.Fast.loss, softmax or sigmoid.
    runs: timed calls, after one that is not.
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
  found: dict[str, float] = {}
  for way, used in meshes.items():
    mesh = sharding.mesh(config.Mesh(-1, 1, 1), used)
    loss = functools.partial(tiled, mesh=mesh, chunk=chunk)
    args = _pairs(batch, embed, scalars, mesh)
    step, held = _compiled(plain if way == "plain" else loss, args)
    found[f"{way}_bytes"] = held
    if way != "plain" or held < 0.8 * free_bytes():  # others want some too
      seconds = median_seconds(
        functools.partial(step, *args), runs, name=f"loss, {way}"
      )
      found[f"{way}_seconds"] = seconds
  for way in meshes.keys() - {"plain"}:
    for what in ("bytes", "seconds"):
      if f"plain_{what}" in found:
        ratio = found[f"{way}_{what}"] / found[f"plain_{what}"]
        found[f"{way}_{what}_of_plain"] = ratio
  return found


def _pairs(
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


def _compiled(
  loss: Callable[..., Any],
  args: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]],
) -> tuple[Callable[..., Any], int]:
  """Value and gradients of all float arguments; bytes of its intermediates."""

  def value(floats: tuple[jax.Array, ...], ids: tuple[jax.Array, ...]) -> Any:
    visual, text, *scalars = floats
    return loss(losses.Pairs(visual, text, *ids), *scalars)

  step = jax.jit(jax.value_and_grad(value, has_aux=True))
  made = step.lower(*args).compile()
  memory: Any = made.memory_analysis()
  return made, memory.temp_size_in_bytes


def free_bytes() -> float:
  """Memory of the first device that nobody holds; 0 if that cannot be told."""
  stats = jax.devices()[0].memory_stats()
  if stats:
    return stats["bytes_limit"] - stats["bytes_in_use"]
  host = pathlib.Path("/proc/meminfo")
  if not host.exists():
    return 0
  kilobytes = re.findall(r"MemAvailable:\s*(\d+)", host.read_text())
  return 1024 * int(kilobytes[0])


def _found(
  searcher: exact_search.Index, asked: np.ndarray, k: int
) -> types.Array:
  return searcher.search(asked, k).rows


def _scann(vectors: np.ndarray) -> exact_search.Index | None:
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
