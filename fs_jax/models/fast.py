"""Fast: a dual encoder. A vector per visual, one per text, a dot product."""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fs_jax import config, types
from fs_jax.models import blocks, layers, text, vision


def unit(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
  """Rows of length one, float32, which the index stores and compares."""
  x = x.astype(jnp.float32)
  # Not `linalg.norm`: its gradient at 0, where padding rows lie, is NaN.
  squared = (x * x).sum(axis=-1, keepdims=True)
  return x / jnp.sqrt(jnp.maximum(squared, 1e-12))


def bound_scale(log_scale: Float[types.Array, ""]) -> Float[Array, ""]:
  """s of the learned log s, kept below 100: larger ones only amplify noise."""
  return jnp.minimum(jnp.exp(log_scale), 100.0)


class Fast(nn.Module):
  """`visual` and `text` embed; `scale` and `bias` belong to the loss."""

  cfg: config.Fast
  vocabulary: int
  length: int
  dtype: jnp.dtype = jnp.dtype(jnp.float32)

  def setup(self) -> None:
    cfg = self.cfg
    stack = cfg.vision.stack
    head = functools.partial(
      layers.Dense, cfg.embed, self.dtype, out=jnp.dtype("float32")
    )
    self.vision = vision.Vision(cfg.vision, self.dtype)
    self.vision_pool = blocks.Pool(
      cfg.vision.pool, stack.heads, stack.hidden, self.dtype
    )
    self.vision_head = head()
    self.text_tower = text.Text(
      cfg.text, self.vocabulary, self.length, self.dtype
    )
    self.text_head = head()
    start = nn.initializers.constant(math.log(cfg.first_scale))
    self.log_scale = self.param("log_scale", start, ())
    if cfg.loss == "sigmoid":
      start = nn.initializers.constant(cfg.bias)
      self.bias = self.param("bias", start, ())

  def visual(
    self, pixels: Float[Array, "B T H W C"], train: bool = False
  ) -> Float[Array, "B E"]:
    """Normalised pixels to unit vectors f(x)."""
    tokens = self.vision(pixels, train)
    b, t, n, d = tokens.shape
    if self.cfg.vision.pool == "class":
      pooled = tokens[:, :, 0].mean(axis=1)
    else:
      pooled = self.vision_pool(tokens.reshape(b, t * n, d))
    return unit(self.vision_head(pooled))

  def text(
    self, text: Int[Array, "R L"], train: bool = False
  ) -> Float[Array, "R E"]:
    """Token ids to unit vectors g(y)."""
    return unit(self.text_head(self.text_tower(text, train)))

  def scale(self) -> Float[Array, ""]:
    """s, which multiplies f.g."""
    return bound_scale(self.log_scale)

  def __call__(
    self,
    pixels: Float[Array, "B T H W C"],
    text: Int[Array, "R L"],
    train: bool = False,
  ) -> dict[str, Array]:
    """Everything a contrastive loss needs; touches every parameter."""
    out = {
      "visual": self.visual(pixels, train),
      "text": self.text(text, train),
      "scale": self.scale(),
    }
    if self.cfg.loss == "sigmoid":
      out["bias"] = self.bias
    return out
