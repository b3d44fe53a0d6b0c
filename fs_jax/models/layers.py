"""Layers that the towers are made of: products, norms, tables.

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
from jaxtyping import Array, Float, Int

from fs_jax import config, types

# Below this vocabulary a lookup is a product with one-hot rows: the backward
# of a gather is a scatter, slow on CPUs and no faster on a TPU at this size.
ONE_HOT_VOCABULARY = 1024

DENSE = "dense"  # name of the results that remat "dots" keeps


def by_rows(x: Float[Array, "B *N"]) -> Float[Array, "B *N"]:
  """Splits rows of `x` over devices as the batch's, where a mesh is set.

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
    a, b: arrays of one dtype.
  """
  if a.dtype == jnp.float32:
    return jnp.einsum(spec, a, b)
  return _product(spec, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(spec: str, a: Array, b: Array) -> Array:
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _product_forward(
  spec: str, a: Array, b: Array
) -> tuple[Array, tuple[Array, Array]]:
  return _product(spec, a, b), (a, b)


def _product_backward(
  spec: str, saved: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
  (a, b), (left, right, out) = saved, re.split(",|->", spec)
  slope = slope.astype(a.dtype)
  # Some products with a batch exist in bfloat16 only in XLA's CPU compiler
  # (jaxlib 0.10.2), which fails when others run.
  batched = set(left) & set(right) & set(out)
  einsum = functools.partial(
    jnp.einsum, preferred_element_type=a.dtype if batched else jnp.float32
  )
  a_slope = einsum(f"{out},{right}->{left}", slope, b)
  b_slope = einsum(f"{left},{out}->{right}", a, slope)
  return a_slope.astype(a.dtype), b_slope.astype(b.dtype)


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
    features = self.features
    features = (features,) if isinstance(features, int) else features
    read = x.shape[x.ndim - self.axes :]

    def first(key: Array, *_: Any) -> Array:
      flat = (math.prod(read), math.prod(features))
      return nn.initializers.lecun_normal()(key, flat).reshape(*read, *features)

    kernel = self.param("kernel", first)
    bias = self.param("bias", nn.initializers.zeros, features)
    letters = string.ascii_lowercase[: x.ndim + len(features)]
    kept = x.ndim - self.axes
    spec = (
      f"{letters[: x.ndim]},{letters[kept:]}->"
      f"{letters[:kept]}{letters[x.ndim :]}"
    )
    y = product(spec, x.astype(self.dtype), kernel.astype(self.dtype))
    y = y + bias.reshape((1,) * kept + features)
    return checkpoint_name(y.astype(self.out or self.dtype), DENSE)


def sincos_2d(key: Array, shape: tuple[int, ...]) -> Float[Array, "h w D"]:
  """First value of a learned 2-D position: sines and cosines of row, column.

  As large as the tokens it is added to, so that "where" is as loud as "what"
  from the first step; a small random start takes hundreds of steps to grow.
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

  def setup(self) -> None:
    self.embedding = self.param(
      "embedding", nn.initializers.normal(0.02), (self.size, self.width)
    )

  def __call__(self, ids: Int[Array, "*R"]) -> Float[Array, "*R D"]:
    table = self.embedding.astype(self.dtype)
    if self.size <= ONE_HOT_VOCABULARY:
      rows = string.ascii_lowercase[: ids.ndim]
      chosen = jax.nn.one_hot(ids, self.size, dtype=self.dtype)
      # One term a sum: the table's own values, to the last bit.
      vectors = product(f"{rows}y,yz->{rows}z", chosen, table)
      return vectors.astype(self.dtype)
    return jnp.take(table, ids, axis=0)

  def attend(self, x: Float[Array, "*R D"]) -> Float[Array, "*R V"]:
    """Dot products with every row, float32: a softmax over them follows."""
    rows = string.ascii_lowercase[: x.ndim - 1]
    table = self.embedding.astype(self.dtype).T
    return product(f"{rows}y,yz->{rows}z", x.astype(self.dtype), table)
