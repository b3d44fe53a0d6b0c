"""FLOPs of a train step, counted from the config: matrix products only.

A compiler counts the body of a loop once: of a scanned stack, one layer. A
multiplication and an addition are two. Attention counts whole: no compiler here
skips what a mask hides.
"""

import dataclasses
import math
import re
from typing import NamedTuple

from fs_jax import config
from fs_jax.models import layers
from fs_jax.models.slow import DIRECTIONS


class Part(NamedTuple):
  """FLOPs of the global batch, of one part of a step."""

  forward: float
  backward: float = 0.0
  again: float = 0.0  # forward that backward repeats to save memory


class Step(NamedTuple):
  """FLOPs of a train step.

  `model` counts the method's products, as MFU does; `hardware` adds those that
  are computed twice to save memory.
  """

  parts: dict[str, Part]

  @property
  def model(self) -> float:
    return sum(p.forward + p.backward for p in self.parts.values())

  @property
  def hardware(self) -> float:
    return self.model + sum(p.again for p in self.parts.values())


def train_step(cfg: config.Config, vocabulary: int) -> Step:
  """FLOPs of a step of `cfg.stage`, by part.

  The optimiser's own products are left out; adamw, lion and adafactor have
  none.
  """
  rows, texts = cfg.train.batch_size, _texts(cfg)
  # Contrastive parts of a batch meet in the loss: all are encoded once before.
  twice = cfg.train.accumulate > 1
  if cfg.stage == "slow":
    parts = _slow_step(cfg, vocabulary, rows, twice)
  else:
    parts = _fast_step(cfg, vocabulary, rows, texts, twice)
  if cfg.stage == "distill":
    lists = cfg.distill.clusters * cfg.distill.cluster_size
    listed = _fast_step(cfg, vocabulary, lists, lists, twice)
    listed["loss"] = _products(lists, cfg.fast.embed, cfg.distill.cluster_size)
    parts |= {f"lists {name}": part for name, part in listed.items()}
    if cfg.distill.teacher == "online":
      parts["teacher"] = Part(
        sum(p.forward for p in _judged(cfg, vocabulary, lists).values())
      )
  return Step(
    {name: _without_frozen(cfg, name, part) for name, part in parts.items()}
  )


def _without_frozen(cfg: config.Config, name: str, part: Part) -> Part:
  """A tower whose parameters are frozen has a forward pass only."""
  towers = {
    "vision": ("fast/vision", "slow/encoder/vision"),
    "text": ("fast/text_tower", "slow/readers_0/text"),
  }
  for tower in towers.get(name.removeprefix("lists "), ()):
    kernel = f"{tower}/encoder/blocks/mlp/up/kernel"
    if tower.startswith("slow/readers"):
      kernel = f"{tower}/blocks/mlp/up/kernel"
    own = tower.startswith("slow") == (cfg.stage == "slow")
    if own and any(re.fullmatch(p, kernel) for p in cfg.optim.freeze):
      return Part(part.forward)
  return part


def shallow(cfg: config.Config) -> config.Config:
  """`cfg` with so few layers that no loop is left, and a batch of eight.

  A compiler's count of its FLOPs can then be compared with ours.
  """

  def cut(stack: config.Stack, layers: int = 2) -> config.Stack:
    return dataclasses.replace(stack, layers=layers)

  def tower(vision: config.Vision) -> config.Vision:
    return dataclasses.replace(vision, stack=cut(vision.stack))

  fast, slow, batch = cfg.fast, cfg.slow, 8
  text = dataclasses.replace(fast.text, stack=cut(fast.text.stack))
  if slow is not None:
    decoder = cut(slow.decoder, 2 * slow.levels)
    slow = dataclasses.replace(
      slow,
      vision=tower(slow.vision),
      decoder=decoder,
      text_layers=min(slow.text_layers, 2),
    )
  return dataclasses.replace(
    cfg,
    fast=dataclasses.replace(
      fast,
      vision=tower(fast.vision),
      text=text,
      chunk=fast.chunk and batch * cfg.data.captions_per_visual,
    ),
    slow=slow,
    distill=dataclasses.replace(cfg.distill, clusters=2, cluster_size=4),
    mesh=config.Mesh(rules=cfg.mesh.rules),
    train=dataclasses.replace(cfg.train, batch_size=batch, accumulate=1),
  )


def _texts(cfg: config.Config) -> int:
  return cfg.train.batch_size * cfg.data.captions_per_visual


def _fast_step(
  cfg: config.Config, vocabulary: int, rows: int, texts: int, twice: bool
) -> dict[str, Part]:
  fast = cfg.fast
  parts = fast_parts(cfg, vocabulary, rows, texts)
  if twice:
    parts = {k: _repeated(p) for k, p in parts.items()}
  # Softmax compares visuals and texts, sigmoid and the ring pairs of them.
  softmax = fast.loss == "softmax" and not fast.chunk
  loss = _products(rows if softmax else texts, fast.embed, texts)
  # The ring keeps no table of pairs: backward makes each block of it again.
  parts["loss"] = _repeated(loss) if fast.chunk else loss
  return parts


def fast_parts(
  cfg: config.Config, vocabulary: int, rows: int, texts: int
) -> dict[str, Part]:
  """Both towers of Fast on `rows` visuals and `texts` captions."""
  fast, length = cfg.fast, cfg.tokens.length
  width = fast.vision.stack.width
  visual = [_vision(fast.vision, cfg.data, rows)]
  if fast.vision.pool == "map":
    tokens = _tokens(fast.vision, cfg.data) * cfg.data.frames
    visual.append(_map_pool(fast.vision.stack, rows, tokens))
  visual.append(_products(rows, width, fast.embed))
  stack = fast.text.stack
  text = [_lookup(vocabulary, texts * length, stack.width)]
  text.append(_stack(stack, texts, length))
  if fast.text.pool == "map":
    text.append(_map_pool(stack, texts, length))
  text.append(_products(texts, stack.width, fast.embed))
  return {"vision": _sum(visual), "text": _sum(text)}


def _slow_step(
  cfg: config.Config, vocabulary: int, rows: int, twice: bool
) -> dict[str, Part]:
  assert cfg.slow is not None
  if cfg.slow.loss == "captioning":
    texts = cfg.data.captions_per_visual
    return slow_parts(cfg, vocabulary, rows, rows * texts, texts)
  # Each visual with its own caption and one that Fast finds hard to tell apart;
  # and the caption with another such visual.
  parts = slow_parts(cfg, vocabulary, rows, 2 * rows, 3)
  del parts["words"]
  if twice:
    parts = {k: _repeated(p) for k, p in parts.items()}
  drawn = _sum(list(fast_parts(cfg, vocabulary, rows, rows).values()))
  drawn_from = _products(rows, cfg.fast.embed, rows)
  parts["negatives"] = Part(drawn.forward + drawn_from.forward)
  return parts


def _judged(cfg: config.Config, vocabulary: int, lists: int) -> dict[str, Part]:
  """Slow on whole clusters: every caption against every visual."""
  return slow_parts(cfg, vocabulary, lists, lists, cfg.distill.cluster_size)


def slow_parts(
  cfg: config.Config, vocabulary: int, rows: int, texts: int, seen: int
) -> dict[str, Part]:
  """Slow on `rows` visuals and `texts` captions, `seen` of them per visual."""
  assert cfg.slow is not None
  slow, stack = cfg.slow, cfg.slow.decoder
  read = cfg.tokens.length - 1
  text = [_lookup(vocabulary, texts * DIRECTIONS * read, stack.width)]
  if slow.text_layers:
    own = dataclasses.replace(stack, layers=slow.text_layers)
    text.append(_stack(own, texts * DIRECTIONS, read))
  levels, crossed = [], []
  words = rows * seen * DIRECTIONS * read
  for k, (tokens, part) in enumerate(_levels(slow, cfg.data, rows)):
    levels.append(part)
    group = dataclasses.replace(stack, layers=slow.groups[k])
    crossed.append(_crossed(group, slow.d_mem, words, read, tokens))
  return {
    "vision": _vision(slow.vision, cfg.data, rows),
    "levels": _sum(levels),
    "text": _sum(text),
    "crossed": _sum(crossed),
    "words": _products(words, stack.width, vocabulary),
  }


def _levels(
  slow: config.Slow, data: config.Data, rows: int
) -> list[tuple[int, Part]]:
  """Tokens a visual has on each level, and the FLOPs of making all rows'."""
  width, patch = slow.vision.stack.width, slow.vision.patch
  levels = []
  for k, grid in enumerate(slow.grids(data.image_size, data.frames)):
    tokens, products = math.prod(grid), []
    if k:
      finer = slow.widths[k - 1]
      products.append(_products(rows * tokens // 4, width, 4 * finer))
      products.append(_stem(patch >> k, slow.stem, finer, rows * tokens))
      width = finer
    products.append(_products(rows * tokens, width, slow.d_mem))
    levels.append((tokens, _sum(products)))
  return levels


def _vision(vision: config.Vision, data: config.Data, rows: int) -> Part:
  """ViT of every frame, its patches included."""
  width, frames = vision.stack.width, rows * data.frames
  patches = frames * (data.image_size // vision.patch) ** 2
  if not vision.stem:
    embed = _products(patches, 3 * vision.patch**2, width, first=True)
  else:
    stem = _stem(vision.patch // 4, vision.stem, vision.stem, 16 * patches)
    embed = _sum([stem, _products(patches, 16 * vision.stem, width)])
  return _sum([embed, _stack(vision.stack, frames, _tokens(vision, data))])


def _tokens(vision: config.Vision, data: config.Data) -> int:
  """Tokens of a frame that the stack sees."""
  return (data.image_size // vision.patch) ** 2 + (vision.pool == "class")


def _stem(patch: int, hidden: int, width: int, places: int) -> Part:
  seen = 3 * (2 * patch) ** 2
  return _sum(
    [
      _products(places, seen, hidden, first=True),
      _products(places, hidden, width),
    ]
  )


def _stack(stack: config.Stack, rows: int, length: int) -> Part:
  """Transformer blocks on `rows` sequences."""
  words, d = rows * length, stack.width
  dense = [_products(words, d, d)] * 4
  dense.append(_products(words, d, stack.hidden))
  mixed = [_products(words, d, length)] * 2  # scores, and values by them
  last = _products(words, stack.hidden, d)
  return _blocks(stack, dense, mixed, last)


def _crossed(
  stack: config.Stack, d_mem: int, words: int, read: int, tokens: int
) -> Part:
  """Blocks that also look at a latent, which all heads share."""
  d, latent = stack.width, stack.heads * d_mem
  dense = [_products(words, d, d)] * 4
  dense += [_products(words, d, latent)] * 2
  dense.append(_products(words, d, stack.hidden))
  mixed = [_products(words, d, read)] * 2
  mixed += [_products(words, latent, tokens)] * 2
  last = _products(words, stack.hidden, d)
  return _blocks(stack, dense, mixed, last)


def _blocks(
  stack: config.Stack, dense: list[Part], mixed: list[Part], last: Part
) -> Part:
  """`stack.layers` times a block; no gradient asks for the result of `last`."""
  block = _sum([*dense, *mixed, last])
  again = {
    "none": 0.0,
    "dots": _sum(mixed).forward,  # products with a batch axis are not kept
    "full": block.forward - last.forward,
  }[stack.remat]
  n = stack.layers
  return Part(n * block.forward, n * block.backward, n * again)


def _map_pool(stack: config.Stack, rows: int, tokens: int) -> Part:
  d, h = stack.width, stack.hidden
  return _sum(
    [
      *[_products(rows * tokens, d, d)] * 2,
      *[_products(rows, d, tokens), _products(rows, d, d)] * 2,
      *[_products(rows, d, h)] * 2,
    ]
  )


def _lookup(vocabulary: int, ids: int, width: int) -> Part:
  if vocabulary > layers.ONE_HOT_VOCABULARY:
    return Part(0.0)
  return _products(ids, vocabulary, width, first=True)


def _products(m: int | float, k: int, n: int, *, first: bool = False) -> Part:
  """[m,k] times [k,n]; the gradient of a `first` one goes no further."""
  forward = 2.0 * m * k * n
  return Part(forward, forward if first else 2 * forward)


def _repeated(part: Part) -> Part:
  return part._replace(again=part.again + part.forward)


def _sum(parts: list[Part]) -> Part:
  return Part(*(sum(values) for values in zip(*parts, strict=True)))
