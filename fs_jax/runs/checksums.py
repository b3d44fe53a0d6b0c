"""A number for each array that a changed bit changes, wherever the array lies.

A damaged byte of a checkpoint is mostly read back as another number: neither
its format nor its compression notices. These sums are taken on the devices,
without gathering anything, and do not depend on how an array is laid out. A
digest (`contract.digest`) says more, but needs all bytes on one host.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fs_jax import trees, types

_STEP = 0x9E3779B1  # odd: no two of the first 2 ** 32 places get the same


def compute(tree: Any) -> dict[str, int]:
  """Name of each leaf -> its sum, below 2 ** 32.

  All processes that hold a part of an array have to call this.

  Raises:
    TypeError: an array whose elements are not of 1, 2 or 4 bytes.
  """
  # Each is read before the next begins: a CPU keeps all mixed elements of one.
  sums = [int(_sum(leaf)) for leaf in jax.tree.leaves(tree)]
  return dict(zip(trees.names(tree), sums, strict=True))


@jax.jit
def _sum(x: types.Array) -> jax.Array:
  """Elements, mixed with their places, modulo 2 ** 32.

  Mixing loses nothing, so that no change of one element is lost; of changes of
  several, swaps among them, one in 2 ** 32. It is the last step of MurmurHash3
  (Appleby, 2011).
  """
  place = jnp.uint32(0)
  for axis, size in enumerate(x.shape):
    along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place = place * jnp.uint32(size % 2**32) + along
  mixed = _bits(x) ^ (place * jnp.uint32(_STEP))
  mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
  mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
  return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _bits(x: types.Array) -> jax.Array:
  if x.dtype == jnp.bool_:
    return jnp.astype(x, jnp.uint32)
  kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}.get(x.dtype.itemsize)
  if kind is None or not jnp.issubdtype(x.dtype, np.number):
    raise TypeError(
      f"checksums: elements must be numbers of 1, 2 or 4 bytes; got {x.dtype}. "
      "convert them"
    )
  return jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
