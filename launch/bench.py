"""Benchmarks whose figures are ratios of two things in one run.

  python -m launch.bench rerank     Slow's pairs/s, and their share of the speed
                                    of a plain matrix product here
  python -m launch.bench loss       memory and time of the contrastive losses:
                                    all pairs at once, tile by tile, a ring
  python -m launch.bench search     exact JAX and ScaNN, 10k and 100k vectors

Medians of 20 calls (loss: of 3), compilation left out. Sizes are those of a
B/16: width 768, 12 layers, 32 words, 196 visual tokens; embeddings of 512. The
plain loss of 32,768 pairs wants 15 GB; where less is free it gets no time.
"""

import json

import jax
from absl import flags

from fs_jax import bench
from launch import cli

_PAIRS = flags.DEFINE_integer("pairs", 16, "rerank: candidates in one call")
_LAYERS = flags.DEFINE_integer("layers", 12, "rerank: crossed layers")
_COMPUTE = flags.DEFINE_enum(
  "compute", "float32", ["float32", "bfloat16"], "rerank: dtype of the model"
)
_ROWS = flags.DEFINE_list("rows", ["10000", "100000"], "search: vectors")
_BATCH = flags.DEFINE_integer("batch", 32_768, "loss: pairs", lower_bound=1)
_EMBED = flags.DEFINE_integer("embed", 512, "loss: width of the embeddings")
_CHUNK = flags.DEFINE_integer("chunk", bench.CHUNK, "loss: rows of a tile")
_LOSS = flags.DEFINE_enum(
  "loss", "softmax", ["softmax", "sigmoid"], "loss: which one"
)


def main(argv) -> None:
  what = cli.only(argv, "say which: rerank, search or loss")
  print(f"on {len(jax.devices())} x {jax.devices()[0].device_kind}")
  if what == "rerank":
    found = bench.rerank_speed(
      layers=_LAYERS.value, pairs=_PAIRS.value, compute=_COMPUTE.value
    )
    print(
      json.dumps({k: float(f"{v:.4g}") for k, v in found.items()}, indent=2)
    )
  elif what == "search":
    for rows in _ROWS.value:
      made = bench.search_speed(int(rows))
      print(json.dumps({k: float(f"{v:.4g}") for k, v in made.items()}))
  elif what == "loss":
    cost = bench.loss_cost(
      _BATCH.value, embed=_EMBED.value, chunk=_CHUNK.value, kind=_LOSS.value
    )
    print(json.dumps({k: float(f"{v:.4g}") for k, v in cost.items()}, indent=2))
  else:
    raise ValueError(
      f"benchmark: must be rerank, search or loss; got {what!r}. pick one"
    )


if __name__ == "__main__":
  cli.run(main, __doc__)
