"""Benchmarks that compare two things measured in the same run.

  python -m launch.bench rerank     Slow's pairs/s, and its share of the speed
                                    of a plain matrix product on this machine
  python -m launch.bench loss       memory and time of the contrastive losses:
                                    all pairs at once, tile by tile, in a ring
  python -m launch.bench search     exact JAX and ScaNN on 10k and 100k vectors:
                                    queries/s and recall for 10 and 100 answers
  python -m launch.bench train      examples/s of a train step, in turns with
                                    open_clip on PyTorch; MFU of either stage
  python -m launch.bench serve      first and later answers of a searcher over
                                    --workdir, before and after warming it;
                                    the cost of its padding

Times are medians of 20 calls (loss: of 3) without compilation. Sizes are those
of a B/16: width 768, 12 layers, 32 words, 196 visual tokens; embeddings of 512.
The plain loss of 32,768 pairs needs 15 GB; it is not timed where less is free.

train uses one device. Its peer, open_clip, runs in an environment of its own,
which `make bench-train` builds before it runs this program. The peer uses as
many threads as this process may use cores, so that `taskset -c 0,1` binds both.
--peer= (empty) times fs_jax alone.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from fs_jax.evaluate.speed import baseline, serving, timing, train_step
from launch import cli

_PAIRS = flags.DEFINE_integer("pairs", 16, "rerank: candidates in one call")
_LAYERS = flags.DEFINE_integer("layers", 12, "rerank: crossed layers")
_COMPUTE = flags.DEFINE_enum(
  "compute",
  "float32",
  ["float32", "bfloat16"],
  "rerank, train: dtype of the model",
)
_ROWS = flags.DEFINE_list(
  "rows", ["10000", "100000"], "search: numbers of vectors"
)
_BATCH = flags.DEFINE_integer(
  "batch",
  None,
  "loss: pairs (default 32768); train: examples a step (default 16 on a CPU, "
  "256 elsewhere)",
  lower_bound=1,
)
_EMBED = flags.DEFINE_integer("embed", 512, "loss: width of the embeddings")
_CHUNK = flags.DEFINE_integer("chunk", timing.CHUNK, "loss: rows per tile")
_LOSS = flags.DEFINE_enum(
  "loss", "softmax", ["softmax", "sigmoid"], "loss: the contrastive loss"
)
_STAGE = flags.DEFINE_enum(
  "stage", "fast", list(train_step.CONFIGS), "train: the stage"
)
_DEPTH = flags.DEFINE_integer(
  "depth", None, "train: layers per tower (default 2 on a CPU, 12 elsewhere)"
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", 5, "train: turns per side", lower_bound=1
)
_PEER = flags.DEFINE_string(
  "peer", ".venv-bench/bin/python", "train: the peer's Python; empty: no peer"
)
_PEER_COMPILE = flags.DEFINE_bool(
  "peer_compile", False, "train: run the peer under torch.compile"
)

_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/quickstart", "serve: folder of the trained stages"
)
_SPLIT = flags.DEFINE_string("split", "test", "serve: the gallery")
_QUERIES = flags.DEFINE_integer(
  "queries",
  24,
  "serve: the largest batch; all sizes from 1 are timed",
  lower_bound=1,
)

_MEND = "run `make bench-train`, or give --peer= to time ours alone"


def main(argv: Sequence[str]) -> None:
  name = cli.take_argument(
    argv, "name a benchmark: rerank, search, loss, train or serve"
  )
  if name == "train":  # two processes share a GPU: neither takes all of it
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  print(f"on {len(jax.devices())} x {jax.devices()[0].device_kind}")
  if name == "rerank":
    speed = timing.measure_rerank(
      layers=_LAYERS.value, pairs=_PAIRS.value, compute=_COMPUTE.value
    )
    print(json.dumps(_round(speed), indent=2))
  elif name == "search":
    for rows in _ROWS.value:
      print(json.dumps(_round(timing.measure_search(int(rows)))))
  elif name == "loss":
    cost = timing.measure_loss(
      _BATCH.value or 32_768,
      embed=_EMBED.value,
      chunk=_CHUNK.value,
      kind=_LOSS.value,
    )
    print(json.dumps(_round(cost), indent=2))
  elif name == "train":
    _train()
  elif name == "serve":
    _serve()
  else:
    raise ValueError(
      "benchmark: must be rerank, search, loss, train or serve; got "
      f"{name!r}. name one of these"
    )


def _serve() -> None:
  served = serving.open_workdir(_WORKDIR.value, _SPLIT.value)
  print(json.dumps(_round(serving.warm_up(served))))
  for queries, k in serving.LISTS:
    print(json.dumps(_round(serving.measure_padding(served, queries, k))))
  print(serving.format_head())
  for row in serving.measure_waits(served, range(1, _QUERIES.value + 1)):
    print(serving.format_line(row), flush=True)


def _round(values: Mapping[str, Any]) -> dict[str, Any]:
  """Numbers to four digits; what else a benchmark reports stays as it is."""
  return {
    name: float(f"{value:.4g}") if isinstance(value, int | float) else value
    for name, value in values.items()
  }


def _train() -> None:
  on_cpu = jax.devices()[0].platform == "cpu"
  cfg = train_step.CONFIGS[_STAGE.value](
    _DEPTH.value or (2 if on_cpu else 12),
    _BATCH.value or (16 if on_cpu else 256),
    _COMPUTE.value,
  )
  peer_python = _PEER.value if cfg.stage == "fast" else ""
  with contextlib.ExitStack() as stack:
    theirs = None
    if peer_python:
      command = [peer_python, "-P", train_step.PEER]
      ask = stack.enter_context(baseline.start(command, _MEND))
      theirs = train_step.Theirs(ask, cfg, compiled=_PEER_COMPILE.value)
    ours = train_step.Ours(cfg)
    print("\n".join(train_step.describe_sides(cfg, ours, theirs)))
    rows: list[train_step.Timed] = []
    print(train_step.format_head(theirs is not None))
    for row in train_step.compare(cfg, ours, theirs, _ROUNDS.value):
      rows.append(row)
      print(train_step.format_line(row, rows[0]), flush=True)
  summary = train_step.summarise(cfg, ours, rows)
  print(json.dumps(_round(summary), indent=2))


if __name__ == "__main__":
  cli.run(main, __doc__)
