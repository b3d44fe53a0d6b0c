"""Speed of a train step, beside open_clip's on PyTorch in the same run.

Both sides are the same dual encoder: a ViT that pools its class token, a text
transformer that pools one token, softmax InfoNCE, AdamW; float32 parameters,
products in `compute`. They take turns, so that what else the machine does meets
both. What stays different, with open_clip first:

- its text is causal and pools the last word, ours masks padding, of which there
  is none here, and pools the first word. Neither skips what its mask hides.
- float32 is each framework's faster kind of it on a GPU (TF32), and the same
  everywhere on a CPU.
- its heads and its patches have no bias, ours do, and a position of frames
  more; its class token has a position. The counts of parameters show it: less
  than 0.01 %. What both count as FLOPs shows that the products are the same.
- it gets pixels as floats, ours as bytes that the step normalises; it clamps
  its temperature after the step and ours in it.
- ours is the step of `step.program` as training runs it: norms of every tower's
  gradient, the recall of the batch and the mask of equal captions are in it.

open_clip's usual gelu (exact) and first norm are set to ours (tanh, none), our
clipping of gradients is off as in open_clip, its AdamW is torch's fused one.
"""

import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fs_jax import config, types
from fs_jax.evaluate.speed import baseline
from fs_jax.machine import compile_cache, hardware, sharding
from fs_jax.models import attention as attentions
from fs_jax.models import blocks, build, layers, vision
from fs_jax.train import gradients, losses
from fs_jax.train import step as steps

PEER = str(pathlib.Path(__file__).with_name("baseline_open_clip.py"))
VOCABULARY, LENGTH = 49_408, 77  # of open_clip's ViT-B-16
TURN = 0.5  # seconds that a side times before it is the other's turn
PAUSE = 0.05  # between turns: threads of the other side spin that long
WHOLE = ("step", "gradient", "forward", "optimiser")  # of every stage


class Timed(NamedTuple):
  """A piece of a step: seconds of each side's turns, round by round."""

  name: str
  times: int  # that a step does it; pieces of text blocks not among them
  ours: list[float]
  peer: list[float]  # none if ours ran alone

  @property
  def ratio(self) -> tuple[float, float, float]:
    """Our speed as a multiple of the peer's: median of rounds, min, max."""
    each = [b / a for a, b in zip(self.ours, self.peer, strict=True)]
    return statistics.median(each), min(each), max(each)


def fast_config(depth: int, batch: int, compute: Any) -> config.Config:
  """Fast with the sizes of open_clip's ViT-B-16, `depth` layers a tower."""
  text = config.Stack(512, depth, 8, 2048)
  seen = config.Vision(config.Stack(768, depth, 12, 3072), 16, pool="class")
  return config.Config(
    "fast",
    config.Fast(seen, config.Text(text, pool="class"), embed=512),
    compute=compute,
    data=config.Data(image_size=224),
    tokens=config.Tokens(vocabulary=VOCABULARY, length=LENGTH),
    optim=config.Optim(learning_rate=1e-4, clip=0.0),
    train=config.Train(batch_size=batch),
  )


def slow_config(depth: int, batch: int, compute: Any) -> config.Config:
  """Slow of B/16 width on two levels; half of `depth` are crossed layers."""
  stack = config.Stack(768, depth, 12, 3072)
  seen = config.Vision(stack, 16)
  crossed = config.Stack(768, max(2, depth // 2), 12, 3072)
  slow = config.Slow(seen, crossed, levels=2, widths=(384,))
  return config.Config(
    "slow",
    config.Fast(seen, config.Text(stack)),
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


def request(cfg: config.Config) -> dict[str, Any]:
  """`cfg` of Fast as what `baseline_open_clip` makes its model of."""

  def sizes(of: config.Stack) -> dict[str, int]:
    names = ("width", "layers", "heads", "hidden")
    return {name: getattr(of, name) for name in names}

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


class Side(Protocol):
  """One of the two: what it is, and how long it takes for a piece."""

  facts: dict[str, Any]

  def run(self, what: str, runs: int) -> list[float]:
    """Seconds of each of `runs` calls."""


class Theirs:
  """The peer, which makes its model of the same sizes."""

  def __init__(self, ask: baseline.Ask, cfg: config.Config, *, compiled: bool):
    self._ask = ask
    self.facts = ask("make", compiled=compiled, **request(cfg))

  def run(self, what: str, runs: int) -> list[float]:
    return self._ask("run", what=what, runs=runs)["seconds"]


class Ours:
  """The step of training on one device, and pieces of it."""

  def __init__(self, cfg: config.Config):
    mesh = sharding.mesh(cfg.mesh, jax.devices()[:1])
    made = steps.program(cfg, cfg.tokens.vocabulary, mesh)
    self.pieces = pieces(cfg, made)
    self._ran: set[str] = set()
    self.facts = {
      "versions": f"jax {jax.__version__}",
      "device": jax.devices()[0].device_kind,
      "threads": len(os.sched_getaffinity(0)),
      "parameters": sum(x.size for x in jax.tree.leaves(made.state.params)),
      "flops": made.flops,
      "note": "",
    }

  def run(self, what: str, runs: int) -> list[float]:
    if what not in self._ran:  # what it compiles and sets up
      jax.block_until_ready(self.pieces[what]())
      self._ran.add(what)
    seconds = []
    for _ in range(runs):
      with compile_cache.timed(what) as region:
        jax.block_until_ready(self.pieces[what]())
      seconds.append(region.elapsed)
    return seconds


def pieces(
  cfg: config.Config, made: steps.Program
) -> dict[str, Callable[[], Any]]:
  """Calls without arguments: of the whole step, and of Fast also its parts."""
  batch = sharding.put(_batch(cfg), sharding.batch(made.mesh))
  state = steps.init(cfg, made)
  step = made.step.lower(made.state, made.frozen, made.batch).compile()
  gradient = jax.jit(gradients.value_and_grad(made.task, cfg.train.accumulate))
  key = jax.random.key(0)

  @jax.jit
  def forward(params, batch):
    rows = made.task.encode(params, {}, batch, key)
    return made.task.loss(params, rows, batch)[0]

  def update(grads, state):
    updates, opt_state = made.optimizer.update(
      grads, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, opt_state=opt_state)

  # What is donated must be in the order of the results, as in the step: moments
  # would lie where parameters were, and a CPU then copies them all, 5 times as
  # slow.
  update = jax.jit(update, donate_argnums=1)
  grads: types.Params | None = None

  def stepped() -> Any:
    nonlocal state
    state, metrics = step(state, {}, batch)
    return metrics["loss"]

  def updated() -> Any:
    nonlocal state, grads
    if grads is None:
      grads = gradient(state.params, {}, batch, key)[1]
    state = update(grads, state)
    return state

  whole: dict[str, Callable[[], Any]] = {
    "step": stepped,
    "gradient": lambda: gradient(state.params, {}, batch, key),
    "forward": lambda: forward(state.params, batch),
    "optimiser": updated,
  }
  if cfg.stage != "fast":
    return whole
  return whole | dict(_parts(cfg, lambda: state.params, batch))


def times(cfg: config.Config) -> dict[str, int]:
  """The pieces that are timed, and how often a step does each.

  Of blocks those of vision only: the text's are other sizes.
  """
  whole = dict.fromkeys(WHOLE, 1)
  if cfg.stage != "fast":
    return whole
  depth = cfg.fast.vision.stack.layers
  return (
    whole
    | dict.fromkeys(("vision", "text"), 1)
    | dict.fromkeys(("mlp", "attention", "attend"), depth)
    | {"product": 2 * depth, "norm": 2 * depth + 1, "gelu": depth}
    | dict.fromkeys(("patches", "lookup", "loss"), 1)
  )


def compare(
  cfg: config.Config, ours: Side, theirs: Side | None, rounds: int
) -> Iterator[Timed]:
  """Times each piece in turns: ours, theirs, ours, theirs.

  A turn is some calls in a row, as many on both sides, and counts as the median
  of them; what a first call compiles or sets up is left out.

  Args:
    cfg: says which pieces there are.
    ours: the step of training.
    theirs: the peer, if there is one.
    rounds: turns of each side.
  """
  sides = [ours] if theirs is None else [ours, theirs]
  for name, often in times(cfg).items():
    slowest = max(side.run(name, 2)[-1] for side in sides)
    runs = min(max(round(TURN / max(slowest, 1e-6)), 1), 20)
    turns: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
      for side, seconds in zip(sides, turns, strict=True):
        time.sleep(PAUSE)
        # Short pieces find their memory in a cache, as inside a step.
        timed = side.run(name, runs + (runs > 1))[-runs:]
        seconds.append(statistics.median(timed))
    yield Timed(name, often, turns[0], turns[1] if theirs else [])


def _batch(cfg: config.Config) -> types.Batch:
  """Random pictures and full captions, all different."""
  rng = np.random.default_rng(0)
  rows, size = cfg.train.batch_size, cfg.data.image_size
  texts = rows * cfg.data.captions_per_visual
  shape = (rows, cfg.data.frames, size, size, 3)
  words = (texts, cfg.tokens.length)
  return types.Batch(
    visual=rng.integers(0, 256, shape, np.uint8),
    text=rng.integers(1, cfg.tokens.vocabulary, words, np.int32),
    visual_id=np.arange(rows, dtype=np.int32),
    text_id=np.arange(texts, dtype=np.int32),
    mask=np.ones(rows, bool),
  )


def _parts(
  cfg: config.Config,
  params: Callable[[], types.Params],
  batch: types.Batch,
) -> Iterator[tuple[str, Callable[[], Any]]]:
  """Parts of Fast's step, forward and backward: towers, pieces of a block."""
  vocabulary = cfg.tokens.vocabulary
  model = build.fast_model(cfg, vocabulary)
  stack, dtype = cfg.fast.vision.stack, jnp.dtype(cfg.compute)
  rows, width = cfg.train.batch_size, stack.width
  tokens = (cfg.data.image_size // cfg.fast.vision.patch) ** 2 + 1
  draw = _Draw(dtype)

  def visual(own, seen):
    seen = build.pixels(cfg, seen)
    return build.apply(model, own, seen, True, method="visual")

  def text(own, ids):
    return build.apply(model, own, ids, True, method="text")

  def part(first):  # a model of Fast has its scale, whatever it is asked
    named = params()["fast"].items()
    return {k: v for k, v in named if k.startswith((first, "log_scale"))}

  see, read = _both(visual), _both(text)
  yield "vision", lambda: see((part("vision"),), (batch.visual,))
  yield "text", lambda: read((part("text"),), (batch.text,))

  x, wide = draw(rows, tokens, width), draw(rows, tokens, stack.hidden)
  each = (rows, tokens, stack.heads, width // stack.heads)
  frames = build.pixels(cfg, batch.visual)[:, 0]
  patches = vision.PatchEmbed(cfg.fast.vision.patch, 0, width, dtype)
  lookup = layers.Embed(vocabulary, cfg.fast.text.stack.width, dtype)
  attention = attentions.Attention(stack.heads, dtype)
  of_rows = [
    _Draw(jnp.dtype(jnp.float32))(rows, cfg.fast.embed) for _ in range(2)
  ]
  of_rows = [r / jnp.linalg.norm(r, axis=1, keepdims=True) for r in of_rows]

  def attend(query, key, value):
    return attentions.attend(query, key, value, None)

  def loss(visual, text, scale, *ids):
    return losses.info_nce(losses.Pairs(visual, text, *ids), scale)[0]

  def own(of: Callable[..., Any], *given: Any) -> Any:
    return jax.jit(of)(jax.random.key(0), *given)

  def of_module(of: nn.Module) -> Callable[[], Any]:
    return _bound(of.apply, own(of.init, x), x)

  def of_input(of: nn.Module, given: Any) -> Callable[[], Any]:
    return _bound(of.apply, own(of.init, given), given=(given,))

  ids = batch.visual_id, batch.text_id, batch.mask
  yield "product", of_module(layers.Dense(stack.hidden, dtype))
  yield "attend", _bound(attend, *(draw(*each) for _ in range(3)))
  yield "norm", of_module(layers.Norm(dtype=dtype))
  yield "gelu", _bound(nn.gelu, wide)
  yield "mlp", of_module(blocks.Mlp(stack.hidden, dtype))
  yield (
    "attention",
    _bound(lambda p, y: attention.apply(p, y, y), own(attention.init, x, x), x),
  )
  yield "patches", of_input(patches, frames)
  yield "lookup", of_input(lookup, batch.text)
  yield "loss", _bound(loss, *of_rows, jnp.float32(14.0), given=ids)


class _Draw:
  """Random arrays of a dtype, each another."""

  def __init__(self, dtype: jnp.dtype):
    self.dtype, self.drawn = dtype, 0

  def __call__(self, *shape: int) -> jax.Array:
    self.drawn += 1
    return jax.random.normal(jax.random.key(self.drawn), shape, self.dtype)


def _both(of: Callable[..., Any]) -> Callable[..., Any]:
  """(args, given) -> value and gradients by `args`, of one fixed cotangent.

  All are arguments of what is compiled: a constant would be computed with then.
  """

  @jax.jit
  def pulled(pull, args, given):
    out, back = jax.vjp(lambda *a: of(*a, *given), *args)
    return out, back(pull)

  fixed: jax.Array | None = None

  def run(args: tuple[Any, ...], given: tuple[Any, ...] = ()) -> Any:
    nonlocal fixed
    if fixed is None:
      out = jax.eval_shape(of, *args, *given)
      fixed = jax.random.normal(jax.random.key(0), out.shape, out.dtype)
    return pulled(fixed, args, given)

  return run


def _bound(
  of: Callable[..., Any], *args: Any, given: tuple[Any, ...] = ()
) -> Callable[[], Any]:
  run = _both(of)
  return lambda: run(args, given)


def head(beside: bool) -> str:
  """Over the lines of `line`, with a peer beside ours or without."""
  said = f"{'piece':<10} {'a step':>6} {'ours ms':>9} {'share':>6}"
  if beside:
    said += f" {'peer ms':>9} {'share':>6}  ratio (min to max)"
  return said


def line(row: Timed, step: Timed) -> str:
  """Milliseconds, share of a step, and our speed over the peer's."""
  said = f"{row.name:<10} {row.times:>6}"
  for mine, whole in ((row.ours, step.ours), (row.peer, step.peer)):
    if mine:
      one, all_of = statistics.median(mine), statistics.median(whole)
      said += f" {1e3 * one:>9.1f} {row.times * one / all_of:>6.0%}"
  if row.peer:
    middle, low, high = row.ratio
    said += f"  {middle:>5.2f} ({low:.2f} to {high:.2f})"
  return said


def facts(cfg: config.Config, ours: Side, theirs: Side | None) -> Iterator[str]:
  """What is compared, a line a side."""
  yield (
    f"{cfg.stage}: {cfg.fast.vision.stack.layers} layers a tower, "
    f"{cfg.train.batch_size} examples a step, {cfg.compute}"
  )
  for name, side in (("ours", ours), ("peer", theirs)):
    if side is None:
      continue
    fact = side.facts
    yield (
      f"{name}: {fact['versions']} on {fact['device']}, {fact['threads']} "
      f"threads; {fact['parameters']:,} parameters, "
      f"{fact['flops'] / 1e9:,.1f} GFLOP a step"
    )
    if fact["note"]:
      yield f"  {fact['note']}"


def summary(
  cfg: config.Config, ours: Side, rows: Sequence[Timed]
) -> dict[str, float]:
  """Examples/s and FLOP/s of both sides, our ratio, and MFU where it is known.

  FLOPs are ours for both. MFU counts against the peak of bfloat16 products,
  whatever `cfg.compute` is.
  """
  step = next(row for row in rows if row.name == "step")
  peak = hardware.peak_flops(ours.facts["device"])
  found: dict[str, float] = {}
  for prefix, seconds in (("", step.ours), ("peer_", step.peer)):
    if not seconds:
      continue
    rate = 1 / statistics.median(seconds)
    flops = rate * ours.facts["flops"]
    found[f"{prefix}examples_per_second"] = rate * cfg.train.batch_size
    found[f"{prefix}tflops_per_second"] = flops / 1e12
    if peak:
      found[f"{prefix}mfu"] = flops / peak
  if step.peer:
    found |= zip(("ratio", "ratio_min", "ratio_max"), step.ratio, strict=True)
  return found
