"""Slow: a captioner as judge, reading a caption in both directions.

The decoder's layer groups cross-attend to ever finer visual tokens. A visual
enters as a Memory only, which is what a store holds: scoring never sees pixels.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fs_jax import config, types
from fs_jax.models import blocks, layers, vision
from fs_jax.models.text import PAD

DIRECTIONS = 2  # forward, backward


def directions(
  text: Int[Array, "*S L"],
) -> tuple[Int[Array, "*S 2 I"], Int[Array, "*S 2 I"]]:
  """Inputs and targets of both readings; I = L - 1.

  Backward, the words are reversed inside the caption's valid length: BOS stays
  first, EOS ends both directions, padding stays last.
  """
  length = text.shape[-1]
  words = (text != PAD).sum(axis=-1, keepdims=True) - 2
  i = jnp.arange(length).reshape((1,) * (text.ndim - 1) + (-1,))
  mirrored = jnp.where((i >= 1) & (i <= words), words + 1 - i, i)
  backward = jnp.take_along_axis(text, mirrored, axis=-1)
  both = jnp.stack([text, backward], axis=-2)
  return both[..., :-1], both[..., 1:]


def depth_to_space(x: Float[Array, "F h w D4"]) -> Float[Array, "F 2*h 2*w D"]:
  """Four channel groups of a token become the four tokens that replace it."""
  f, h, w, d = x.shape
  x = x.reshape(f, h, w, 2, 2, d // 4).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(f, 2 * h, 2 * w, d // 4)


class Finer(nn.Module):
  """The next level: tokens upsampled twofold, plus the pixels beneath them."""

  patch: int
  stem: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, coarse: Float[Array, "B T h w C"], pixels: Float[Array, "B T H W 3"]
  ) -> Float[Array, "B T 2*h 2*w D"]:
    b, t = coarse.shape[:2]
    coarse = coarse.reshape(b * t, *coarse.shape[2:])
    up = layers.Dense(4 * self.width, self.dtype, name="upsample")(coarse)
    up = depth_to_space(up)
    frames = pixels.reshape(b * t, *pixels.shape[2:]).astype(self.dtype)
    stem = vision.Stem(
      self.patch, self.stem, self.width, self.dtype, name="lateral"
    )
    lateral = stem(frames)
    position = self.param("position", layers.sincos_2d, up.shape[1:])
    x = up + lateral + position[None].astype(self.dtype)
    x = layers.Norm(dtype=self.dtype, name="norm")(x)
    return x.reshape(b, t, *x.shape[1:])


class Encoder(nn.Module):
  """Pixels to Memory."""

  cfg: config.Slow
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, pixels: Float[Array, "B T H W C"], train: bool = False
  ) -> types.Memory:
    cfg = self.cfg
    b, t, size = pixels.shape[:3]
    patch = cfg.vision.patch
    grid = vision.Vision(cfg.vision, self.dtype, name="vision")(pixels, train)
    if cfg.vision.pool == "class":
      grid = grid[:, :, 1:]
    grid = grid.reshape(b, *cfg.grids(size, t)[0], grid.shape[-1])
    levels = []
    for k in range(cfg.levels):
      if k > 0:
        if k == 1:
          grid = grid[:, :: cfg.finer_frames]
          pixels = pixels[:, :: cfg.finer_frames]
        width = cfg.widths[k - 1]
        finer = Finer(patch >> k, cfg.stem, width, self.dtype, name=f"up{k}")
        grid = finer(grid, pixels)
      tokens = grid.reshape(b, -1, grid.shape[-1])
      latent = layers.Dense(
        cfg.d_mem, self.dtype, out=jnp.dtype("float32"), name=f"memory{k}"
      )(tokens)
      seen = jnp.ones(latent.shape[:2], bool)
      levels.append(types.Level(latent, seen))
    return types.Memory(tuple(levels))


class Reader(nn.Module):
  """Text decoder: first without vision, then one layer group per level."""

  cfg: config.Slow
  vocabulary: int
  length: int
  dtype: jnp.dtype

  def setup(self) -> None:
    cfg, stack = self.cfg, self.cfg.decoder
    init = nn.initializers.normal(0.02)
    self.tokens = layers.Embed(self.vocabulary, stack.width, self.dtype)
    self.position = self.param("position", init, (self.length, stack.width))
    self.direction = self.param("direction", init, (DIRECTIONS, stack.width))
    if cfg.text_layers:
      self.alone = blocks.Stack(
        _with_layers(stack, cfg.text_layers), self.dtype, name="text"
      )
    self.norm = layers.Norm(dtype=self.dtype)
    self.out_bias = self.param(
      "out_bias", nn.initializers.zeros, (self.vocabulary,)
    )

  def read(
    self, inputs: Int[Array, "R d I"], which: Int[Array, "d"], train: bool
  ) -> Float[Array, "R d I D"]:
    """Text states that do not depend on any visual."""
    r, d, i = inputs.shape
    x = self.tokens(inputs) + self.position[:i].astype(self.dtype)[None, None]
    x = x + self.direction[which].astype(self.dtype)[None, :, None]
    if self.cfg.text_layers:
      flat = x.reshape(r * d, i, -1)
      x = self.alone(flat, _causal(i), train).reshape(x.shape)
    return x

  @nn.compact
  def look(
    self,
    memory: types.Memory,
    x: Float[Array, "B S I D"],
    train: bool,
  ) -> Float[Array, "B S I D"]:
    """Text states after looking at a visual, coarse level first."""
    mask = _causal(x.shape[2])
    for k, (level, count) in enumerate(
      zip(memory.levels, self.cfg.groups, strict=True)
    ):
      stack = _with_layers(self.cfg.decoder, count)
      group = blocks.scan(blocks.CrossBlock, stack, 3, self.is_initializing())
      group = group(stack, self.dtype, train, name=f"level{k}")
      x, _ = group(x, mask, level.latent, level.mask)
    return self.norm(x)

  def logits(self, x: Float[Array, "*S D"]) -> Float[Array, "*S V"]:
    """Scores of the next word, float32: a softmax over them follows."""
    bias = self.out_bias.reshape((1,) * (x.ndim - 1) + (-1,))
    return self.tokens.attend(x) + bias


class Slow(nn.Module):
  """`encode_visual`, then any number of `log_likelihood` over its Memory."""

  cfg: config.Slow
  vocabulary: int
  length: int
  dtype: jnp.dtype = jnp.dtype(jnp.float32)

  def setup(self) -> None:
    cfg = self.cfg
    self.encoder = Encoder(cfg, self.dtype)
    self.readers = [
      Reader(cfg, self.vocabulary, self.length, self.dtype)
      for _ in range(DIRECTIONS if cfg.separate_directions else 1)
    ]
    init = nn.initializers.normal(0.02)
    self.null = self.param("null", init, (cfg.levels, cfg.d_mem))
    if cfg.loss == "matching":
      self.match = layers.Dense(1, jnp.dtype("float32"))

  def encode_visual(
    self, pixels: Float[Array, "B T H W C"], train: bool = False
  ) -> types.Memory:
    """Normalised pixels to the memory that is stored of them."""
    return self.encoder(pixels, train)

  def blank(self, memory: types.Memory, rows: Bool[Array, "B"]) -> types.Memory:
    """Replaces rows by "no picture": one learned token a level, same shape."""
    levels = []
    for k, level in enumerate(memory.levels):
      first = jnp.arange(level.mask.shape[1])[None] == 0
      null = jnp.where(first[..., None], self.null[k], 0.0)
      hide = rows[:, None]
      latent = jnp.where(hide[..., None], null, level.latent)
      levels.append(types.Level(latent, jnp.where(hide, first, level.mask)))
    return types.Memory(tuple(levels))

  def read(
    self, text: Int[Array, "R L"], train: bool = False
  ) -> Float[Array, "R 2 I D"]:
    """The part of scoring that needs no visual: once a query."""
    inputs, _ = directions(text)
    which = jnp.arange(DIRECTIONS)
    if not self.cfg.separate_directions:
      return self.readers[0].read(inputs, which, train)
    parts = [
      reader.read(inputs[:, i : i + 1], which[i : i + 1], train)
      for i, reader in enumerate(self.readers)
    ]
    return jnp.concatenate(parts, axis=1)

  def read_lists(
    self, text: Int[Array, "R L"], lists: int, train: bool = False
  ) -> tuple[Int[Array, "B S L"], Float[Array, "B S 2 I D"]]:
    """R texts as `lists` lists: their tokens, and their states as `read`."""
    tokens = text.reshape(lists, -1, text.shape[-1])
    states = self.read(text, train)
    return tokens, states.reshape(*tokens.shape[:2], *states.shape[1:])

  def look(
    self,
    memory: types.Memory,
    states: Float[Array, "B S 2 I D"],
    train: bool = False,
  ) -> Float[Array, "B S 2 I D"]:
    """Final states of every sequence of a row, given that row's visual."""
    b, s, d, i, _ = states.shape
    if not self.cfg.separate_directions:
      flat = states.reshape(b, s * d, i, -1)
      return self.readers[0].look(memory, flat, train).reshape(states.shape)
    parts = [
      reader.look(memory, states[:, :, k], train)
      for k, reader in enumerate(self.readers)
    ]
    return jnp.stack(parts, axis=2)

  def word_log_likelihood(
    self,
    memory: types.Memory,
    states: Float[Array, "B S 2 I D"],
    text: Int[Array, "#B S L"],
    train: bool = False,
  ) -> Float[Array, "B S 2 I"]:
    """log p of every target, nats; 0 at padding.

    Float32 throughout: sums of many small terms decide the order.
    """
    _, targets = directions(text)
    seen = self.look(memory, states, train)
    logits = jnp.stack(
      [
        self.readers[k % len(self.readers)].logits(seen[:, :, k])
        for k in range(DIRECTIONS)
      ],
      axis=2,
    )
    # A comparison that fuses into the sum: a gather's backward would scatter.
    vocabulary = jnp.arange(self.vocabulary)[None, None, None, None]
    own = jnp.where(targets[..., None] == vocabulary, logits, 0.0).sum(axis=-1)
    log_p = own - jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(targets != PAD, log_p, 0.0)

  def log_likelihood(
    self,
    memory: types.Memory,
    text: Int[Array, "B S L"],
    train: bool = False,
  ) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """h(x, y) in nats, both directions, and its number of targets n."""
    b, s, length = text.shape
    text, states = self.read_lists(text.reshape(b * s, length), b, train)
    words = self.word_log_likelihood(memory, states, text, train)
    return words.sum(axis=(2, 3)), targets_of(text)

  def match_logit(
    self,
    memory: types.Memory,
    states: Float[Array, "B S 2 I D"],
    text: Int[Array, "#B S L"],
    train: bool = False,
  ) -> Float[Array, "B S"]:
    """Logit that a caption belongs to a visual (matching baseline)."""
    _, targets = directions(text)
    valid = (targets != PAD)[..., None]
    seen = self.look(memory, states, train).astype(jnp.float32)
    total = jnp.where(valid, seen, 0.0).sum(axis=(2, 3))
    count = jnp.maximum(valid.sum(axis=(2, 3)), 1)
    return self.match(total / count)[..., 0]

  def score(
    self,
    memory: types.Memory,
    states: Float[Array, "B S 2 I D"],
    text: Int[Array, "#B S L"],
  ) -> Float[Array, "B S"]:
    """The score that ranks visuals for a caption: h, or the matching logit."""
    if self.cfg.loss == "matching":
      return self.match_logit(memory, states, text)
    words = self.word_log_likelihood(memory, states, text)
    return words.sum(axis=(2, 3))

  def __call__(
    self, pixels: Float[Array, "B T H W C"], text: Int[Array, "B L"]
  ) -> Float[Array, "B 1 2 I"]:
    """Touches every parameter, so that `init` makes all of them."""
    memory = self.encode_visual(pixels)
    memory = self.blank(memory, jnp.zeros(pixels.shape[0], bool))
    states = self.read(text)[:, None]
    if self.cfg.loss == "matching":
      self.match_logit(memory, states, text[:, None])
    return self.word_log_likelihood(memory, states, text[:, None])


def targets_of(text: Int[Array, "*S L"]) -> Float[Array, "*S"]:
  """n: targets of both directions, EOS included."""
  tokens = (text != PAD).sum(axis=-1)
  return DIRECTIONS * jnp.maximum(tokens - 1, 0).astype(jnp.float32)


def _with_layers(stack: config.Stack, count: int) -> config.Stack:
  return dataclasses.replace(stack, layers=count)


def _causal(length: int) -> Bool[Array, "1 1 I I"]:
  """Padding is last, so a mask of the past also hides it from words."""
  return jnp.tril(jnp.ones((length, length), bool))[None, None]
