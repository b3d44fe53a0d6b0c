"""Checksums of arrays, computed on the devices that hold them.

A damaged byte of a checkpoint is mostly read back as another number: neither
its format nor its compression notices. Any changed bit of an array changes its
checksum. Nothing is gathered, and the result does not depend on how an array is
sharded. A digest (`contract.digest`) is stronger but needs all bytes on one
host.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fs_jax import trees, types

_STEP = 0x9E3779B1  # odd, so that the first 2 ** 32 places all differ


def compute(tree: Any) -> dict[str, int]:
  """Computes the checksum of each leaf, by name; each is below 2 ** 32.

  All processes that hold a part of an array have to call this.

  Raises:
    TypeError: an array whose elements do not have 1, 2 or 4 bytes.
  """
  # Each is read before the next begins: a CPU holds a mixed copy of the array.
  sums = [int(_sum(leaf)) for leaf in jax.tree.leaves(tree)]
  return dict(zip(trees.names(tree), sums, strict=True))


@jax.jit
def _sum(x: types.Array) -> jax.Array:
  """The sum of all elements, each mixed with its place, modulo 2 ** 32.

  Mixing is invertible, so a change of one element always shows. Changes of
  several elements, swaps included, go unnoticed once in 2 ** 32. The mix is the
  last step of MurmurHash3 (Appleby, 2011).
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
      "convert them, such as to float32"
    )
  return jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
