"""Speed of a train step, beside open_clip's on PyTorch in the same run.

Both sides are the same dual encoder: a ViT that pools its class token, a text
transformer that pools one token, softmax InfoNCE, AdamW; float32 parameters,
products in `compute`. They take turns, so that any other load on the machine
slows both. These differences remain:

- open_clip's text tower is causal and pools the last word; ours masks padding,
  of which there is none here, and pools the first word. Neither skips what its
  mask hides.
- float32 means each framework's faster variant on a GPU (TF32), and the same
  everywhere on a CPU.
- open_clip's heads and patches have no bias; ours have biases, and a position
  embedding of frames. Its class token has a position. The parameter counts
  differ by less than 0.01 %; equal FLOP counts show that the products are the
  same.
- open_clip gets pixels as floats; ours come as bytes, which the step
  normalises. It clamps its temperature after the step, we do in the step.
- ours is the step of `step.program` as training runs it, which includes the
  norms of every tower's gradient, the recall of the batch and the mask of equal
  captions.

open_clip's usual gelu (exact) and first norm are set to ours (tanh, none). Our
gradient clipping is off, as in open_clip. Its AdamW is torch's fused one.
"""

import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict, cast

import jax

from fs_jax import config
from fs_jax.evaluate.speed import baseline, pieces
from fs_jax.machine import compile_cache, hardware, sharding
from fs_jax.train import step as steps

PEER = str(pathlib.Path(__file__).with_name("baseline_open_clip.py"))
VOCABULARY, LENGTH = 49_408, 77  # open_clip's ViT-B-16
TURN = 0.5  # seconds that a side is timed before the other's turn
PAUSE = 0.05  # seconds between turns: the other side's threads spin that long


class Timed(NamedTuple):
  """A piece of a step: seconds of each side's turns, round by round."""

  name: str
  calls: int  # in a step; those of text blocks are not counted
  ours: list[float]
  peer: list[float]  # empty if ours ran alone

  @property
  def ratio(self) -> tuple[float, float, float]:
    """Our speed as a multiple of the peer's: median of rounds, min, max."""
    ratios = [b / a for a, b in zip(self.ours, self.peer, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def fast_config(depth: int, batch: int, compute: Any) -> config.Config:
  """Fast with the sizes of open_clip's ViT-B-16, `depth` layers per tower."""
  text = config.Stack(512, depth, 8, 2048)
  vision = config.Vision(config.Stack(768, depth, 12, 3072), 16, pool="class")
  return config.Config(
    "fast",
    config.Fast(vision, config.Text(text, pool="class"), embed=512),
    compute=compute,
    data=config.Data(image_size=224),
    tokens=config.Tokens(vocabulary=VOCABULARY, length=LENGTH),
    optim=config.Optim(learning_rate=1e-4, clip=0.0),
    train=config.Train(batch_size=batch),
  )


def slow_config(depth: int, batch: int, compute: Any) -> config.Config:
  """Slow of B/16 width on two levels; half of `depth` are crossed layers."""
  stack = config.Stack(768, depth, 12, 3072)
  vision = config.Vision(stack, 16)
  crossed = config.Stack(768, max(2, depth // 2), 12, 3072)
  slow = config.Slow(vision, crossed, levels=2, widths=(384,))
  return config.Config(
    "slow",
    config.Fast(vision, config.Text(stack)),
    slow,
    compute=compute,
    data=config.Data(image_size=224),
    tokens=config.Tokens(vocabulary=16_384, length=32),
    train=config.Train(batch_size=batch),
  )


CONFIGS: dict[str, Callable[[int, int, Any], config.Config]] = {
  "fast": fast_config,
  "slow": slow_config,
}


def describe_model(cfg: config.Config) -> dict[str, Any]:
  """Fast's sizes, as `baseline_open_clip` needs them to build its peer."""

  def sizes(stack: config.Stack) -> dict[str, int]:
    names = ("width", "layers", "heads", "hidden")
    return {name: getattr(stack, name) for name in names}

  fast = cfg.fast
  return {
    "batch": cfg.train.batch_size,
    "image": cfg.data.image_size,
    "patch": fast.vision.patch,
    "vision": sizes(fast.vision.stack),
    "text": sizes(fast.text.stack),
    "embed": fast.embed,
    "vocabulary": cfg.tokens.vocabulary,
    "length": cfg.tokens.length,
    "scale": fast.first_scale,
    "compute": cfg.compute,
    "learning_rate": cfg.optim.learning_rate,
    "b1": cfg.optim.b1,
    "b2": cfg.optim.b2,
    "weight_decay": cfg.optim.weight_decay,
  }


class Facts(TypedDict):
  """A side's versions, device and sizes."""

  versions: str
  device: str
  threads: int
  parameters: int
  flops: float  # of a step
  note: str  # "" = nothing to note


class Side(Protocol):
  """One of the two frameworks: what it is, and how long a piece takes."""

  facts: Facts

  def run(self, what: str, runs: int) -> list[float]:
    """Seconds of each of `runs` calls of a piece."""


class Theirs:
  """The peer, with a model of the same sizes."""

  def __init__(self, ask: baseline.Ask, cfg: config.Config, *, compiled: bool):
    self._ask = ask
    self.facts = cast(
      Facts, ask("make", compiled=compiled, **describe_model(cfg))
    )

  def run(self, what: str, runs: int) -> list[float]:
    return self._ask("run", what=what, runs=runs)["seconds"]


class Ours:
  """The step of training on one device, and pieces of it."""

  def __init__(self, cfg: config.Config):
    mesh = sharding.mesh(cfg.mesh, jax.devices()[:1])
    program = steps.program(cfg, cfg.tokens.vocabulary, mesh)
    parameters = jax.tree.leaves(program.state.params)
    self.pieces = pieces.make(cfg, program)
    self._warm: set[str] = set()
    self.facts: Facts = {
      "versions": f"jax {jax.__version__}",
      "device": jax.devices()[0].device_kind,
      "threads": hardware.count_cores(),
      "parameters": sum(x.size for x in parameters),
      "flops": program.flops,
      "note": "",
    }

  def run(self, what: str, runs: int) -> list[float]:
    if what not in self._warm:  # the first call compiles
      jax.block_until_ready(self.pieces[what]())
      self._warm.add(what)
    seconds = []
    for _ in range(runs):
      with compile_cache.timed(what) as region:
        jax.block_until_ready(self.pieces[what]())
      seconds.append(region.elapsed)
    return seconds


def compare(
  cfg: config.Config, ours: Side, theirs: Side | None, rounds: int
) -> Iterator[Timed]:
  """Times each piece in turns: ours, theirs, ours, theirs.

  A turn is a number of calls in a row, the same on both sides, and counts as
  their median. First calls, which compile or set up, are not counted.

  Args:
    cfg: decides which pieces there are.
    ours: our step of training.
    theirs: the peer, if there is one.
    rounds: turns per side.
  """
  sides = [ours] if theirs is None else [ours, theirs]
  for name, calls in pieces.count_calls(cfg).items():
    slowest = max(side.run(name, 2)[-1] for side in sides)
    runs = min(max(round(TURN / max(slowest, 1e-6)), 1), 20)
    turns: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
      for side, seconds in zip(sides, turns, strict=True):
        time.sleep(PAUSE)
        # One call more, so that short pieces find their memory in a cache, as
        # they do inside a step.
        timed = side.run(name, runs + (runs > 1))[-runs:]
        seconds.append(statistics.median(timed))
    yield Timed(name, calls, turns[0], turns[1] if theirs else [])


def format_head(with_peer: bool) -> str:
  """The header of the lines of `format_line`."""
  text = f"{'piece':<10} {'a step':>6} {'ours ms':>9} {'share':>6}"
  if with_peer:
    text += f" {'peer ms':>9} {'share':>6}  ratio (min to max)"
  return text


def format_line(row: Timed, step: Timed) -> str:
  """Milliseconds, share of a step, and our speed over the peer's."""
  text = f"{row.name:<10} {row.calls:>6}"
  for turns, step_turns in ((row.ours, step.ours), (row.peer, step.peer)):
    if turns:
      piece, whole = statistics.median(turns), statistics.median(step_turns)
      text += f" {1e3 * piece:>9.1f} {row.calls * piece / whole:>6.0%}"
  if row.peer:
    median, low, high = row.ratio
    text += f"  {median:>5.2f} ({low:.2f} to {high:.2f})"
  return text


def describe_sides(
  cfg: config.Config, ours: Side, theirs: Side | None
) -> Iterator[str]:
  """Yields what is compared, line by line."""
  yield (
    f"{cfg.stage}: {cfg.fast.vision.stack.layers} layers a tower, "
    f"{cfg.train.batch_size} examples a step, {cfg.compute}"
  )
  for name, side in (("ours", ours), ("peer", theirs)):
    if side is None:
      continue
    facts = side.facts
    yield (
      f"{name}: {facts['versions']} on {facts['device']}, {facts['threads']} "
      f"threads; {facts['parameters']:,} parameters, "
      f"{facts['flops'] / 1e9:,.1f} GFLOP a step"
    )
    if facts["note"]:
      yield f"  {facts['note']}"


def summarise(
  cfg: config.Config, ours: Side, rows: Sequence[Timed]
) -> dict[str, float]:
  """Examples/s and FLOP/s of both sides, our ratio, and MFU if known.

  Both sides are charged our count of FLOPs. MFU is relative to the peak of
  bfloat16 products, whatever `cfg.compute` is.
  """
  step = next(row for row in rows if row.name == "step")
  peak = hardware.peak_flops(ours.facts["device"])
  values: dict[str, float] = {}
  for prefix, seconds in (("", step.ours), ("peer_", step.peer)):
    if not seconds:
      continue
    rate = 1 / statistics.median(seconds)
    flops = rate * ours.facts["flops"]
    values[f"{prefix}examples_per_second"] = rate * cfg.train.batch_size
    values[f"{prefix}tflops_per_second"] = flops / 1e12
    if peak:
      values[f"{prefix}mfu"] = flops / peak
  if step.peer:
    values |= zip(("ratio", "ratio_min", "ratio_max"), step.ratio, strict=True)
  return values
