"""Transformer blocks, stacks of them, and pooling.

Lifted transforms live here only.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fs_jax import config
from fs_jax.models import attention, layers

# Stacks up to this depth are unrolled inside their scan: a loop costs (a Fast
# step of four layers took 7 % less without, on a CPU). Lower where activations
# are computed again, which is for memory: unrolled, coco's Slow takes 4.7 GiB a
# chip in place of 3.8, and half as long again to compile.
UNROLLED = {"none": 4, "dots": 2, "full": 2}

_POLICIES = {
  # By name: a product itself is float32, twice the size of its result.
  "dots": jax.checkpoint_policies.save_only_these_names(layers.DENSE),
  "full": jax.checkpoint_policies.nothing_saveable,
}


class Mlp(nn.Module):
  """Two linear maps with GELU between them."""

  hidden: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    width = x.shape[-1]
    x = nn.gelu(layers.Dense(self.hidden, self.dtype, name="up")(x))
    return layers.Dense(width, self.dtype, name="down")(x)


class Block(nn.Module):
  """Pre-norm block: attention within, then feed-forward."""

  cfg: config.Stack
  dtype: jnp.dtype
  train: bool

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "#B 1 #L L"] | None
  ) -> tuple[Float[Array, "B L D"], None]:
    x = layers.by_rows(x)
    drop = nn.Dropout(self.cfg.dropout, deterministic=not self.train)
    y = layers.Norm(dtype=self.dtype, name="norm_attention")(x)
    attend = attention.Attention(self.cfg.heads, self.dtype, name="attention")
    x = x + drop(attend(y, y, mask))
    y = layers.Norm(dtype=self.dtype, name="norm_mlp")(x)
    return x + drop(Mlp(self.cfg.hidden, self.dtype, name="mlp")(y)), None


class CrossBlock(nn.Module):
  """Pre-norm block that also looks at a visual.

  S sequences of L words share one visual: they are folded into its row, so
  that captions, reading directions and queries all cost one matrix product.
  """

  cfg: config.Stack
  dtype: jnp.dtype
  train: bool

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B S I D"],
    mask: Bool[Array, "1 1 I I"],
    latent: Float[Array, "B N M"],
    seen: Bool[Array, "B N"],
  ) -> tuple[Float[Array, "B S I D"], None]:
    b, s, words, d = x.shape
    x = layers.by_rows(x)
    drop = nn.Dropout(self.cfg.dropout, deterministic=not self.train)
    y = layers.Norm(dtype=self.dtype, name="norm_attention")(x)
    y = y.reshape(b * s, words, d)
    attend = attention.Attention(self.cfg.heads, self.dtype, name="attention")
    x = x + drop(attend(y, y, mask).reshape(b, s, words, d))
    y = layers.Norm(dtype=self.dtype, name="norm_cross")(x)
    y = y.reshape(b, s * words, d)
    look = attention.LatentAttention(self.cfg.heads, self.dtype, name="cross")
    x = x + drop(look(y, latent, seen).reshape(b, s, words, d))
    y = layers.Norm(dtype=self.dtype, name="norm_mlp")(x)
    return x + drop(Mlp(self.cfg.hidden, self.dtype, name="mlp")(y)), None


def scan(
  block: type[nn.Module], cfg: config.Stack, inputs: int, initializing: bool
) -> Callable[..., nn.Module]:
  """`block` repeated cfg.layers times, its parameters stacked in front.

  `inputs` of its arguments beside x are the same for every layer. What runs
  once, to initialise, stays a loop: that compiles in half the time.
  """
  short = cfg.layers <= UNROLLED[cfg.remat]
  if cfg.remat != "none":
    policy = _POLICIES[cfg.remat]
    block = nn.remat(block, policy=policy, prevent_cse=False)
  return nn.scan(
    block,
    variable_axes={"params": 0, "intermediates": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(nn.broadcast,) * inputs,
    length=cfg.layers,
    unroll=cfg.layers if short and not initializing else 1,
  )


class Stack(nn.Module):
  """Blocks one after the other, as one compiled block."""

  cfg: config.Stack
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    mask: Bool[Array, "#B 1 #L L"] | None = None,
    train: bool = False,
  ) -> Float[Array, "B L D"]:
    blocks = scan(Block, self.cfg, 1, self.is_initializing())
    return blocks(self.cfg, self.dtype, train, name="blocks")(x, mask)[0]


class Pool(nn.Module):
  """Tokens to one vector: attention by a learned probe, mean, or the first."""

  kind: str
  heads: int
  hidden: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"] | None = None
  ) -> Float[Array, "B D"]:
    if self.kind == "class":
      return x[:, 0]
    if self.kind == "mean":
      if mask is None:
        return x.mean(axis=1)
      weight = mask[..., None].astype(x.dtype)
      return (x * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)
    width = x.shape[-1]
    probe = self.param("probe", nn.initializers.normal(0.02), (1, 1, width))
    probe = jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, width))
    seen = None if mask is None else mask[:, None, None, :]
    attend = attention.Attention(self.heads, self.dtype, name="attention")
    y = attend(probe, x, seen)
    z = layers.Norm(dtype=self.dtype, name="norm")(y)
    return (y + Mlp(self.hidden, self.dtype, name="mlp")(z))[:, 0]
