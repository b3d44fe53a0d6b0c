"""Blocks that the towers are made of. Lifted transforms live here only.

Parameters are float32; `dtype` is what products read. What they sum is float32
(`product`), and stays so where a softmax or a likelihood follows; softmax and
layer norm statistics are float32 too: all of them lose what matters to rounding
otherwise.
"""

import functools
import math
import re
import string
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from fs_jax import config, types

# Below this vocabulary a lookup is a product with one-hot rows: the backward
# of a gather is a scatter, slow on CPUs and no faster on a TPU at this size.
ONE_HOT_VOCABULARY = 1024

# Up to this length the scores of a head fit a cache, and a fused kernel's
# set-up costs more than it saves (1.5 times on a CPU at 17 words).
SHORT = 64

# Stacks up to this depth are unrolled inside their scan: a loop costs (a Fast
# step of four layers took 7 % less without, on a CPU). Lower where activations
# are computed again, which is for memory: unrolled, coco's Slow takes 4.7 GiB a
# chip in place of 3.8, and half as long again to compile.
UNROLLED = {"none": 4, "dots": 2, "full": 2}

MASKED = -1e30  # finite: a row with nothing to see stays free of NaN

_DENSE = "dense"  # results that remat "dots" keeps

_POLICIES = {
  # By name: a product itself is float32, twice what is made of it.
  "dots": jax.checkpoint_policies.save_only_these_names(_DENSE),
  "full": jax.checkpoint_policies.nothing_saveable,
}


def by_rows(x: Float[Array, "B *N"]) -> Float[Array, "B *N"]:
  """`x`, its rows split as the batch is, where the train step set a mesh.

  Parameters split over fsdp tempt the compiler to split widths in their place
  and to keep every row everywhere: a step of B/16 on eight chips then takes 82
  GB of activations a chip, and 16 with its rows held here.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(config.ROWS))


def product(
  spec: str, a: Float[types.Array, "..."], b: Float[types.Array, "..."]
) -> Float[Array, "..."]:
  """`jnp.einsum(spec, a, b)`, float32 whatever `a` and `b` are.

  A product of bfloat16 is summed in float32 anyway; asked for as bfloat16 it is
  rounded, and on a CPU takes as long as one of float32. The slope that comes
  back is rounded as `a` and `b` are: its products with them would be computed
  in float32 otherwise.

  Args:
    spec: each letter of an operand is also one of the other or of the result.
    a, b: of one dtype.
  """
  if a.dtype == jnp.float32:
    return jnp.einsum(spec, a, b)
  return _product(spec, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(spec: str, a: Array, b: Array) -> Array:
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _product_forward(spec, a, b):
  return _product(spec, a, b), (a, b)


def _product_backward(spec, saved, slope):
  (a, b), (left, right, out) = saved, re.split(",|->", spec)
  slope = slope.astype(a.dtype)
  # Of products with a batch XLA's CPU compiler (jaxlib 0.10.2) has some in
  # bfloat16 only, and says so when they run.
  batched = set(left) & set(right) & set(out)
  of = functools.partial(
    jnp.einsum, preferred_element_type=a.dtype if batched else jnp.float32
  )
  of_a = of(f"{out},{right}->{left}", slope, b)
  of_b = of(f"{left},{out}->{right}", a, slope)
  return of_a.astype(a.dtype), of_b.astype(b.dtype)


_product.defvjp(_product_forward, _product_backward)


class Dense(nn.Module):
  """Linear map of the last `axes` dimensions onto `features`, and a bias.

  As linen's Dense and DenseGeneral, names and first values included, with sums
  and bias in float32. `dtype` is what is read and, unless `out` says otherwise,
  what is returned.
  """

  features: int | tuple[int, ...]
  dtype: jnp.dtype
  axes: int = 1
  out: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Float[types.Array, "..."]) -> Float[Array, "..."]:
    made = self.features
    made = (made,) if isinstance(made, int) else made
    read = x.shape[x.ndim - self.axes :]

    def first(key: Array, *_: Any) -> Array:
      flat = (math.prod(read), math.prod(made))
      return nn.initializers.lecun_normal()(key, flat).reshape(*read, *made)

    kernel = self.param("kernel", first)
    bias = self.param("bias", nn.initializers.zeros, made)
    letters = string.ascii_lowercase[: x.ndim + len(made)]
    kept = x.ndim - self.axes
    spec = (
      f"{letters[: x.ndim]},{letters[kept:]}->"
      f"{letters[:kept]}{letters[x.ndim :]}"
    )
    y = product(spec, x.astype(self.dtype), kernel.astype(self.dtype))
    y = y + bias.reshape((1,) * kept + made)
    return checkpoint_name(y.astype(self.out or self.dtype), _DENSE)


def sincos_2d(key: Array, shape: tuple[int, ...]) -> Float[Array, "h w D"]:
  """First value of a learned 2-D position: sines and cosines of row, column.

  Of the size of what it is added to, so that "where" is as loud as "what" from
  the first step; a small random start takes hundreds of steps to grow.
  """
  del key
  h, w, width = shape
  count = -(-width // 4)
  # Half a wave to four over the picture.
  rate = (jnp.pi * 2.0 ** jnp.linspace(-1, 3, count))[None, None]
  rows = (jnp.arange(h) + 0.5)[:, None, None] / h * rate
  columns = (jnp.arange(w) + 0.5)[None, :, None] / w * rate
  waves = [jnp.sin(rows), jnp.cos(rows), jnp.sin(columns), jnp.cos(columns)]
  full = jnp.concatenate(
    [jnp.broadcast_to(x, (h, w, count)) for x in waves], axis=-1
  )
  return full[..., :width]


class Norm(nn.LayerNorm):
  """Layer norm with float32 statistics, whatever the compute dtype."""

  epsilon: float = 1e-6


class Embed(nn.Module):
  """Table of vectors, read by integers; `attend` is its transpose."""

  size: int
  width: int
  dtype: jnp.dtype

  def setup(self):
    self.embedding = self.param(
      "embedding", nn.initializers.normal(0.02), (self.size, self.width)
    )

  def __call__(self, ids: Int[Array, "*R"]) -> Float[Array, "*R D"]:
    table = self.embedding.astype(self.dtype)
    if self.size <= ONE_HOT_VOCABULARY:
      rows = string.ascii_lowercase[: ids.ndim]
      chosen = jax.nn.one_hot(ids, self.size, dtype=self.dtype)
      # One term a sum: the table's own values, to the last bit.
      found = product(f"{rows}y,yz->{rows}z", chosen, table)
      return found.astype(self.dtype)
    return jnp.take(table, ids, axis=0)

  def attend(self, x: Float[Array, "*R D"]) -> Float[Array, "*R V"]:
    """Dot products with every row, float32: a softmax over them follows."""
    rows = string.ascii_lowercase[: x.ndim - 1]
    table = self.embedding.astype(self.dtype).T
    return product(f"{rows}y,yz->{rows}z", x.astype(self.dtype), table)


def attend(
  query: Float[Array, "B L h d"],
  key: Float[Array, "B N h d"],
  value: Float[Array, "B N h d"],
  mask: Bool[Array, "#B 1 #L N"] | None,
) -> Float[Array, "B L h d"]:
  """Softmax attention, float32 inside; fused where the device can."""
  if max(query.shape[1], key.shape[1]) > SHORT:
    if mask is None and _fuses(query):
      return jax.nn.dot_product_attention(
        query, key, value, implementation="cudnn"
      )
    return _attend_by_head(query, key, value, mask)
  scores = product("blhd,bnhd->bhln", query, key)
  scores = scores / query.shape[-1] ** 0.5
  if mask is not None:
    scores = jnp.where(mask, scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  mixed = product("bhln,bnhd->blhd", weights, value)
  return mixed.astype(value.dtype)


def _fuses(query: Float[Array, "B L h d"]) -> bool:
  """Whether cuDNN's kernel takes it: NVIDIA, half precision, these heads.

  Elsewhere `jax.nn.dot_product_attention` is plain products as well.
  """
  return (
    jax.default_backend() == "gpu"
    and jax.local_devices()[0].device_kind.startswith("NVIDIA")
    and query.dtype == jnp.bfloat16
    and query.shape[-1] % 8 == 0
    and query.shape[-1] <= 128
  )


def _attend_by_head(
  query: Float[Array, "B L h d"],
  key: Float[Array, "B N h d"],
  value: Float[Array, "B N h d"],
  mask: Bool[Array, "#B 1 #L N"] | None,
) -> Float[Array, "B L h d"]:
  """As `attend`: heads in front, keys transposed, then plain products.

  A CPU takes 2 to 3 times as long, forward and backward, where the products
  read their heads out of the middle (197 tokens, 12 heads of 64).
  """
  query = query.transpose(0, 2, 1, 3) / query.shape[-1] ** 0.5
  key = key.transpose(0, 2, 3, 1)  # [B,h,d,N]
  scores = product("bhld,bhdn->bhln", query, key)
  if mask is not None:
    scores = jnp.where(mask, scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  mixed = product("bhln,bhnd->bhld", weights, value.transpose(0, 2, 1, 3))
  return mixed.astype(value.dtype).transpose(0, 2, 1, 3)


class Attention(nn.Module):
  """Multi-head attention of queries over keys."""

  heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    source: Float[Array, "B N D"],
    mask: Bool[Array, "#B 1 #L N"] | None = None,
  ) -> Float[Array, "B L D"]:
    width = x.shape[-1]
    shape = (self.heads, width // self.heads)

    def project(y: Array, name: str) -> Array:  # [B,L,heads,D/heads]
      return Dense(shape, self.dtype, name=name)(y)

    mixed = attend(
      project(x, "query"),
      project(source, "key"),
      project(source, "value"),
      mask,
    )
    return Dense(width, self.dtype, axes=2, name="out")(mixed)


class LatentAttention(nn.Module):
  """Attention over a stored latent, which all heads share.

  Keys and values of every head are linear maps of the latent. Both maps are
  absorbed, the keys' into the query (D -> d_mem per head), the values' into the
  output: nothing is ever projected per visual token, and one visual costs two
  matrix products for all heads and words together.
  """

  heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    latent: Float[Array, "B N M"],
    mask: Bool[Array, "B N"],
  ) -> Float[Array, "B L D"]:
    width, d_mem = x.shape[-1], latent.shape[-1]
    latent = latent.astype(self.dtype)
    query = Dense((self.heads, d_mem), self.dtype, name="query")(x)
    scores = product("blhm,bnm->blhn", query, latent)
    scores = scores / d_mem**0.5
    scores = jnp.where(mask[:, None, None, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    self.sow("intermediates", "attention", weights)  # only when asked for
    mixed = product("blhn,bnm->blhm", weights.astype(self.dtype), latent)
    mixed = mixed.astype(self.dtype)
    return Dense(width, self.dtype, axes=2, name="out")(mixed)


class Mlp(nn.Module):
  hidden: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    width = x.shape[-1]
    x = nn.gelu(Dense(self.hidden, self.dtype, name="up")(x))
    return Dense(width, self.dtype, name="down")(x)


class Block(nn.Module):
  """Pre-norm block: attention within, then feed-forward."""

  cfg: config.Stack
  dtype: jnp.dtype
  train: bool

  @nn.compact
  def __call__(self, x: Array, mask: Array | None) -> tuple[Array, None]:
    x = by_rows(x)
    drop = nn.Dropout(self.cfg.dropout, deterministic=not self.train)
    y = Norm(dtype=self.dtype, name="norm_attention")(x)
    attention = Attention(self.cfg.heads, self.dtype, name="attention")
    x = x + drop(attention(y, y, mask))
    y = Norm(dtype=self.dtype, name="norm_mlp")(x)
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
    self, x: Array, mask: Array, latent: Array, seen: Array
  ) -> tuple[Array, None]:
    b, s, words, d = x.shape
    x = by_rows(x)
    drop = nn.Dropout(self.cfg.dropout, deterministic=not self.train)
    y = Norm(dtype=self.dtype, name="norm_attention")(x).reshape(
      b * s, words, d
    )
    attention = Attention(self.cfg.heads, self.dtype, name="attention")
    x = x + drop(attention(y, y, mask).reshape(b, s, words, d))
    y = Norm(dtype=self.dtype, name="norm_cross")(x).reshape(b, s * words, d)
    cross = LatentAttention(self.cfg.heads, self.dtype, name="cross")
    x = x + drop(cross(y, latent, seen).reshape(b, s, words, d))
    y = Norm(dtype=self.dtype, name="norm_mlp")(x)
    return x + drop(Mlp(self.cfg.hidden, self.dtype, name="mlp")(y)), None


def scanned(
  block: type[nn.Module], cfg: config.Stack, inputs: int, initializing: bool
):
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
    blocks = scanned(Block, self.cfg, 1, self.is_initializing())
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
    where = None if mask is None else mask[:, None, None, :]
    attention = Attention(self.heads, self.dtype, name="attention")
    y = attention(probe, x, where)
    z = Norm(dtype=self.dtype, name="norm")(y)
    return (y + Mlp(self.hidden, self.dtype, name="mlp")(z))[:, 0]
