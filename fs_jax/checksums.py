"""A number for each array that any changed bit changes, wherever it lies.

A damaged byte of a checkpoint is mostly read back as another number: neither
its format nor its compression notices. These sums are taken on the devices,
without gathering anything, and do not depend on how an array is laid out.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fs_jax import paths, types

_SPREAD = 0x9E3779B1  # odd: neighbours get weights that have nothing in common


def of(tree: Any) -> dict[str, int]:
  """Name of each leaf -> its sum, below 2 ** 32.

  All processes that hold a part of an array have to call this.
  """
  sums = [_sum(leaf) for leaf in jax.tree.leaves(tree)]
  read = jax.device_get(sums)  # at once: one wait, not one an array
  return dict(zip(paths.names(tree), map(int, read), strict=True))


@jax.jit
def _sum(x: types.Array) -> types.Array:
  """Bits of every element by an odd weight of its place, modulo 2 ** 32.

  An odd weight has an inverse there, so that no change of one element is lost;
  of other changes one in 2 ** 32.
  """
  place = jnp.uint32(0)
  for axis, size in enumerate(x.shape):
    along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place = place * jnp.uint32(size % 2**32) + along
  weight = place * jnp.uint32(_SPREAD)
  weight = (weight ^ (weight >> 15)) | jnp.uint32(1)
  return jnp.sum(_bits(x) * weight, dtype=jnp.uint32)


def _bits(x: types.Array) -> types.Array:
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  as_bits = np.dtype(f"uint{8 * x.dtype.itemsize}")
  return jax.lax.bitcast_convert_type(x, as_bits).astype(jnp.uint32)
