"""Blocks that the towers are made of. Lifted transforms live here only.

Parameters are float32; `dtype` is what is computed in. Softmax and layer norm
statistics stay float32: both lose what matters to rounding otherwise.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from fs_jax import config

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

_POLICIES = {
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
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
      return jax.nn.one_hot(ids, self.size, dtype=self.dtype) @ table
    return jnp.take(table, ids, axis=0)

  def attend(self, x: Float[Array, "*R D"]) -> Float[Array, "*R V"]:
    return x @ self.embedding.astype(self.dtype).T


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
  scores = jnp.einsum("blhd,bnhd->bhln", query, key).astype(jnp.float32)
  scores = scores / query.shape[-1] ** 0.5
  if mask is not None:
    scores = jnp.where(mask, scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("bhln,bnhd->blhd", weights, value)


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
  scores = jnp.matmul(query, key, preferred_element_type=jnp.float32)
  if mask is not None:
    scores = jnp.where(mask, scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.matmul(weights, value.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


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
      return nn.DenseGeneral(shape, dtype=self.dtype, name=name)(y)

    mixed = attend(
      project(x, "query"),
      project(source, "key"),
      project(source, "value"),
      mask,
    )
    return nn.DenseGeneral(width, (-2, -1), dtype=self.dtype, name="out")(mixed)


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
    query = nn.DenseGeneral(
      (self.heads, d_mem), dtype=self.dtype, name="query"
    )(x)
    scores = jnp.einsum("blhm,bnm->blhn", query, latent).astype(jnp.float32)
    scores = scores / d_mem**0.5
    scores = jnp.where(mask[:, None, None, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    self.sow("intermediates", "attention", weights)  # only when asked for
    mixed = jnp.einsum("blhn,bnm->blhm", weights.astype(self.dtype), latent)
    return nn.DenseGeneral(width, (-2, -1), dtype=self.dtype, name="out")(mixed)


class Mlp(nn.Module):
  hidden: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    width = x.shape[-1]
    x = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="up")(x))
    return nn.Dense(width, dtype=self.dtype, name="down")(x)


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
