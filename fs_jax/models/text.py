"""Text tower of Fast: reads a whole caption at once."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fs_jax import config
from fs_jax.models import blocks, layers

PAD = 0  # the tokenizer's padding id, by contract


class Text(nn.Module):
  """Token ids to one vector a caption."""

  cfg: config.Text
  vocabulary: int
  length: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, text: Int[Array, "R L"], train: bool = False
  ) -> Float[Array, "R D"]:
    stack = self.cfg.stack
    valid = text != PAD
    x = layers.Embed(self.vocabulary, stack.width, self.dtype, name="tokens")(
      text
    )
    position = self.param(
      "position", nn.initializers.normal(0.02), (self.length, stack.width)
    )
    x = x + position[None, : text.shape[1]].astype(self.dtype)
    mask = valid[:, None, None, :]
    x = blocks.Stack(stack, self.dtype, name="encoder")(x, mask, train)
    x = layers.Norm(dtype=self.dtype, name="norm")(x)
    pool = blocks.Pool(
      self.cfg.pool, stack.heads, stack.hidden, self.dtype, name="pool"
    )
    return pool(x, valid)
