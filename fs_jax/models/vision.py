"""Visual tower: a ViT shared by the frames of a visual."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fs_jax import config, types
from fs_jax.models import layers


def normalise(
  visual: UInt8[types.Array, "B T H W C"],
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
) -> Float[Array, "B T H W C"]:
  """Stored bytes to what models see; on the device, four times less to move."""
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
  def __call__(self, frames: Float[Array, "F H W C"]) -> Array:
    p = self.patch
    around = (p // 2, p - p // 2)
    conv = nn.Conv(
      self.hidden,
      (2 * p, 2 * p),
      strides=p,
      padding=(around, around),
      dtype=self.dtype,
      name="conv",
    )
    seen = nn.gelu(conv(frames))
    return nn.Dense(self.width, dtype=self.dtype, name="out")(seen)


class PatchEmbed(nn.Module):
  """Convolutions from pixels to a token a patch.

  Without a stem, one whose stride is its size, computed as one matrix product;
  its kernel [p*p*3, D] is a convolution's [p,p,3,D] reshaped. With a stem,
  quarter patches are first seen by a small convolution, the same everywhere:
  what a thing looks like is then learned once and not for each place in a
  patch, which is most of what little data and large patches lack.
  """

  patch: int
  stem: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, frames: Float[Array, "F H W C"]) -> Array:
    x, size = frames.astype(self.dtype), self.patch
    if self.stem:
      quarter = Stem(size // 4, self.stem, self.stem, self.dtype, name="stem")
      x, size = nn.gelu(quarter(x)), 4
    x = patchify(x, size)
    return nn.Dense(self.width, dtype=self.dtype, name="conv")(x)


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
    x = layers.Stack(self.cfg.stack, self.dtype, name="encoder")(x, None, train)
    x = layers.Norm(dtype=self.dtype, name="norm")(x)
    x = x.reshape(b, t, -1, width)
    time = self.param("time", init, (t, width))
    return x + time[None, :, None, :].astype(self.dtype)
