"""Sums see every bit, and nothing of where an array lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fs_jax.runs import checksums


def bits(x):
  return np.asarray(x).view(f"u{x.dtype.itemsize}")


def reference(x):
  """The same sum in integers without end."""
  total = 0
  for place, value in enumerate(bits(x).reshape(-1).tolist()):
    mixed = value ^ place * 0x9E3779B1 % 2**32
    mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 % 2**32
    total += mixed ^ mixed >> 16
  return total % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 5), (0, 2)])
def test_a_sum_is_what_it_is_said_to_be(dtype, shape):
  draw = np.random.default_rng(0)
  x = jnp.asarray(draw.normal(0, 40, shape)).astype(dtype)
  assert checksums.compute({"a": {"b": x}}) == {"a/b": reference(x)}


def test_truth_has_a_sum():
  yes = jnp.array([True, False, True])
  assert checksums.compute([yes]) == checksums.compute([yes.astype(jnp.uint32)])


def test_every_bit_counts():
  x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  want = checksums.compute([x])
  for place in range(x.size):
    for bit in range(32):
      other = x.copy()
      other.reshape(-1).view(np.uint32)[place] ^= np.uint32(1 << bit)
      assert checksums.compute([other]) != want


def test_changes_do_not_cancel():
  """Of many elements at once, in whichever bits, and of their order alone."""
  x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
  seen = [
    checksums.compute([jnp.asarray(y)])["0"] for y in (x, -x, x[::-1], x.T)
  ]
  for i in range(x.size):
    for j in range(i):
      two, swapped = x.copy(), x.copy()
      two.reshape(-1)[[i, j]] *= -1
      swapped.reshape(-1)[[i, j]] = x.reshape(-1)[[j, i]]
      seen += [checksums.compute([y])["0"] for y in (two, swapped)]
  assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("bad", [jnp.complex64(1), jax.random.key(0)])
def test_elements_of_another_kind_are_refused(bad):
  with pytest.raises(TypeError, match="numbers of 1, 2 or 4 bytes; got"):
    checksums.compute([bad])


@pytest.mark.parametrize(
  "spec", [("a",), (None, "b"), ("a", "b"), (("a", "b"),), ()]
)
def test_the_layout_does_not_count(spec):
  mesh = jax.make_mesh((4, 2), ("a", "b"))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)
  laid = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
  assert checksums.compute([laid]) == checksums.compute([x])


def test_a_sum_gathers_nothing():
  mesh = jax.make_mesh((4, 2), ("a", "b"))
  where = NamedSharding(mesh, PartitionSpec("a", "b"))
  x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=where)
  hlo = checksums._sum.lower(x).compile().as_text()
  assert "all-reduce" in hlo
  assert "all-gather" not in hlo and "all-to-all" not in hlo
