"""Visual tower: a ViT shared by the frames of a visual."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fs_jax import config, types
from fs_jax.models import blocks, layers


def normalise(
  visual: UInt8[types.Array, "B T H W C"],
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
) -> Float[Array, "B T H W C"]:
  """Stored bytes to a model's pixels; on the device: bytes are less to move."""
  scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32)
  shift = jnp.asarray([m / s for m, s in zip(mean, std, strict=True)])
  spread = (1,) * 4 + (3,)
  pixels = jnp.asarray(visual, jnp.float32) * scale.reshape(spread)
  return pixels - shift.astype(jnp.float32).reshape(spread)


def patchify(
  frames: Float[Array, "F H W C"], patch: int
) -> Float[Array, "F h w P"]:
  """Squares of patch x patch pixels as vectors: P = patch * patch * C."""
  f, h, w, c = frames.shape
  grid = frames.reshape(f, h // patch, patch, w // patch, patch, c)
  grid = grid.transpose(0, 1, 3, 2, 4, 5)
  return grid.reshape(f, h // patch, w // patch, patch * patch * c)


class Stem(nn.Module):
  """Convolution of twice a patch's size around each, stride one patch.

  Small things straddle patches: a token that sees past its own recognises them
  wherever they lie.
  """

  patch: int
  hidden: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, frames: Float[Array, "F H W C"]
  ) -> Float[Array, "F h w D"]:
    size = 2 * self.patch
    conv = nn.Conv(
      self.hidden,
      (size, size),
      strides=self.patch,
      dtype=self.dtype,
      conv_general_dilated=_around_patches,
      promote_dtype=_cast_all_but_bias,
      name="conv",
    )
    seen = nn.gelu(conv(frames).astype(self.dtype))
    return layers.Dense(self.width, self.dtype, name="out")(seen)


def _cast_all_but_bias(
  *arrays: Array | None, dtype: Any = None, inexact: bool = True
) -> list[Array | None]:
  """Casts what a convolution reads; the bias, added to its sums, stays."""
  del inexact
  *read, bias = arrays
  return [x if x is None else x.astype(dtype) for x in read] + [bias]


def _around_patches(
  frames: Float[Array, "F H W C"],
  kernel: Float[Array, "window window C D"],
  strides: tuple[int, int],
  *_: Any,
  **__: Any,
) -> Float[Array, "F h w D"]:
  """The convolution of `Stem`, by platform; called as linen's Conv calls it.

  A TPU multiplies channels, of which pixels have three; and its compiler takes
  50 s for windows of 16 x 16 where 2 x 2 patches take 6.
  """
  return jax.lax.platform_dependent(
    frames,
    kernel,
    cpu=functools.partial(_by_pixels, strides[0]),
    default=functools.partial(_by_patches, strides[0]),
  )


def _by_pixels(
  patch: int,
  frames: Float[Array, "F H W C"],
  kernel: Float[Array, "window window C D"],
) -> Float[Array, "F h w D"]:
  return _convolved(frames, kernel, patch, (patch // 2, patch - patch // 2))


def _by_patches(
  patch: int,
  frames: Float[Array, "F H W C"],
  kernel: Float[Array, "window window C D"],
) -> Float[Array, "F h w D"]:
  """The same sum, over four patches and their pixels."""
  around = (patch // 2, patch - patch // 2)
  frames = jnp.pad(frames, ((0, 0), around, around, (0, 0)))
  c, d = kernel.shape[2:]
  kernel = kernel.reshape(2, patch, 2, patch, c, d)
  kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, -1, d)
  return _convolved(patchify(frames, patch), kernel, 1, (0, 0))


def _convolved(
  x: Array, kernel: Array, stride: int, around: tuple[int, int]
) -> Array:
  """Sums in float32, as those of `layers.product`."""
  if x.dtype == jnp.float32:
    return _conv(x, kernel, stride, around)
  return _half_convolved(stride, around, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _half_convolved(
  stride: int, around: tuple[int, int], x: Array, kernel: Array
) -> Array:
  return _conv(x, kernel, stride, around, jnp.dtype("float32"))


def _half_forward(
  stride: int, around: tuple[int, int], x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
  return _half_convolved(stride, around, x, kernel), (x, kernel)


def _half_backward(
  stride: int,
  around: tuple[int, int],
  saved: tuple[Array, Array],
  slope: Float[Array, "F h w D"],
) -> tuple[Array, Array]:
  """JAX convolves arrays of one dtype only: the slope is rounded to theirs."""
  _, back = jax.vjp(lambda x, k: _conv(x, k, stride, around), *saved)
  return back(slope.astype(saved[0].dtype))


_half_convolved.defvjp(_half_forward, _half_backward)


def _conv(
  x: Array,
  kernel: Array,
  stride: int,
  around: tuple[int, int],
  out: jnp.dtype | None = None,
) -> Array:
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    (around, around),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    preferred_element_type=out,
  )


class PatchEmbed(nn.Module):
  """Convolutions from pixels to a token a patch.

  Without a stem, one whose stride is its size, computed as one matrix product;
  its kernel [p*p*3, D] is a convolution's [p,p,3,D] reshaped. With a stem,
  quarter patches are first seen by a small convolution, the same everywhere:
  the look of a thing is then learned once and not for each place in a patch,
  which is most of what little data and large patches lack.
  """

  patch: int
  stem: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, frames: Float[Array, "F H W C"]
  ) -> Float[Array, "F h w D"]:
    x, size = frames.astype(self.dtype), self.patch
    if self.stem:
      quarter = Stem(size // 4, self.stem, self.stem, self.dtype, name="stem")
      x, size = nn.gelu(quarter(x)), 4
    x = patchify(x, size)
    return layers.Dense(self.width, self.dtype, name="conv")(x)


class Vision(nn.Module):
  """Pixels to tokens [B,T,N,D]; frames meet only in what reads the tokens."""

  cfg: config.Vision
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, pixels: Float[Array, "B T H W C"], train: bool = False
  ) -> Float[Array, "B T N D"]:
    b, t, h, w, c = pixels.shape
    width, patch = self.cfg.stack.width, self.cfg.patch
    frames = pixels.reshape(b * t, h, w, c)
    embed = PatchEmbed(patch, self.cfg.stem, width, self.dtype, name="patches")
    x = embed(frames)
    rows, columns = x.shape[1:3]
    init = nn.initializers.normal(0.02)
    grid = (rows, columns, width)
    position = self.param("position", layers.sincos_2d, grid)
    x = x + position[None].astype(self.dtype)
    x = x.reshape(b * t, rows * columns, width)
    if self.cfg.pool == "class":
      first = self.param("class", init, (1, 1, width)).astype(self.dtype)
      x = jnp.concatenate([jnp.tile(first, (b * t, 1, 1)), x], axis=1)
    x = blocks.Stack(self.cfg.stack, self.dtype, name="encoder")(x, None, train)
    x = layers.Norm(dtype=self.dtype, name="norm")(x)
    x = x.reshape(b, t, -1, width)
    time = self.param("time", init, (t, width))
    return x + time[None, :, None, :].astype(self.dtype)
