"""Benchmarks whose figures are ratios of two things in one run.

  python -m launch.bench rerank     Slow's pairs/s, and their share of the speed
                                    of a plain matrix product here
  python -m launch.bench loss       memory and time of the contrastive losses:
                                    all pairs at once, tile by tile, a ring
  python -m launch.bench search     exact JAX and ScaNN, 10k and 100k vectors:
                                    queries/s and recall for 10 and 100 answers
  python -m launch.bench train      examples/s of a train step, in turns with
                                    open_clip on PyTorch; MFU of both stages
  python -m launch.bench serve      first and later answers of a searcher over
                                    --workdir, before and after it is warmed;
                                    what its padding costs

Medians of 20 calls (loss: of 3), compilation left out. Sizes are those of a
B/16: width 768, 12 layers, 32 words, 196 visual tokens; embeddings of 512. The
plain loss of 32,768 pairs wants 15 GB; where less is free it gets no time.

train is on one device. Its peer has an environment of its own, which `make
bench-train` makes before it runs this; it takes as many threads as this process
may use cores, so that `taskset -c 0,1` binds both. --peer= times ours alone.
"""

import contextlib
import json
import os
from collections.abc import Mapping

import jax
from absl import flags

from fs_jax.evaluate.speed import baseline, serving, timing, train_step
from launch import cli

_PAIRS = flags.DEFINE_integer("pairs", 16, "rerank: candidates in one call")
_LAYERS = flags.DEFINE_integer("layers", 12, "rerank: crossed layers")
_COMPUTE = flags.DEFINE_enum(
  "compute", "float32", ["float32", "bfloat16"], "rerank, train: dtype"
)
_ROWS = flags.DEFINE_list("rows", ["10000", "100000"], "search: vectors")
_BATCH = flags.DEFINE_integer(
  "batch",
  None,
  "loss: pairs, 32768 if not given; train: examples a step, 16 on a CPU and "
  "256 elsewhere",
  lower_bound=1,
)
_EMBED = flags.DEFINE_integer("embed", 512, "loss: width of the embeddings")
_CHUNK = flags.DEFINE_integer("chunk", timing.CHUNK, "loss: rows of a tile")
_LOSS = flags.DEFINE_enum(
  "loss", "softmax", ["softmax", "sigmoid"], "loss: which one"
)
_STAGE = flags.DEFINE_enum(
  "stage", "fast", list(train_step.CONFIGS), "train: which one"
)
_DEPTH = flags.DEFINE_integer(
  "depth", None, "train: layers of a tower, 2 on a CPU and 12 elsewhere"
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", 5, "train: turns of each side", lower_bound=1
)
_PEER = flags.DEFINE_string(
  "peer", ".venv-bench/bin/python", "train: Python of the peer; empty: no peer"
)
_PEER_COMPILE = flags.DEFINE_bool(
  "peer_compile", False, "train: the peer's model under torch.compile"
)

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "serve: trained")
_SPLIT = flags.DEFINE_string("split", "test", "serve: the gallery")
_QUERIES = flags.DEFINE_integer(
  "queries", 24, "serve: batches of one query to so many", lower_bound=1
)

_MEND = "run `make bench-train`, or give --peer= to time ours alone"


def main(argv) -> None:
  what = cli.only(argv, "say which: rerank, search, loss, train or serve")
  if what == "train":  # two processes share a GPU: neither takes all of it
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  print(f"on {len(jax.devices())} x {jax.devices()[0].device_kind}")
  if what == "rerank":
    found = timing.rerank_speed(
      layers=_LAYERS.value, pairs=_PAIRS.value, compute=_COMPUTE.value
    )
    print(json.dumps(_rounded(found), indent=2))
  elif what == "search":
    for rows in _ROWS.value:
      made = timing.search_speed(int(rows))
      print(json.dumps(_rounded(made)))
  elif what == "loss":
    cost = timing.loss_cost(
      _BATCH.value or 32_768,
      embed=_EMBED.value,
      chunk=_CHUNK.value,
      kind=_LOSS.value,
    )
    print(json.dumps(_rounded(cost), indent=2))
  elif what == "train":
    _train()
  elif what == "serve":
    _serve()
  else:
    raise ValueError(
      "benchmark: must be rerank, search, loss, train or serve; got "
      f"{what!r}. pick one"
    )


def _serve() -> None:
  made = serving.serve(_WORKDIR.value, _SPLIT.value)
  print(json.dumps(_rounded(serving.warm_up(made))))
  for queries, k in serving.LISTS:
    print(json.dumps(_rounded(serving.padding(made, queries, k))))
  print(serving.head())
  for row in serving.waits(made, range(1, _QUERIES.value + 1)):
    print(serving.line(row), flush=True)


def _rounded(found: Mapping[str, float]) -> dict[str, float]:
  return {k: float(f"{v:.4g}") for k, v in found.items()}


def _train() -> None:
  on_cpu = jax.devices()[0].platform == "cpu"
  cfg = train_step.CONFIGS[_STAGE.value](
    _DEPTH.value or (2 if on_cpu else 12),
    _BATCH.value or (16 if on_cpu else 256),
    _COMPUTE.value,
  )
  beside = _PEER.value if cfg.stage == "fast" else ""
  with contextlib.ExitStack() as held:
    theirs = None
    if beside:
      command = [beside, "-P", train_step.PEER]
      ask = held.enter_context(baseline.start(command, _MEND))
      theirs = train_step.Theirs(ask, cfg, compiled=_PEER_COMPILE.value)
    ours = train_step.Ours(cfg)
    print("\n".join(train_step.facts(cfg, ours, theirs)))
    rows: list[train_step.Timed] = []
    print(train_step.head(theirs is not None))
    for row in train_step.compare(cfg, ours, theirs, _ROUNDS.value):
      rows.append(row)
      print(train_step.line(row, rows[0]), flush=True)
  found = train_step.summary(cfg, ours, rows)
  print(json.dumps(_rounded(found), indent=2))


if __name__ == "__main__":
  cli.run(main, __doc__)
