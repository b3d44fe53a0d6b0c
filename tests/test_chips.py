"""Peaks by what JAX calls a device, and one table of TPUs for everything."""

import pytest

from fs_jax import chips, machines


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),  # as v5p calls itself
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),  # not what its beginning alone says
    ("NVIDIA H200", 989e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("cpu", None),
    ("TPU v3", None),
    ("", None),
  ],
)
def test_the_longest_name_that_fits_says_the_peak(kind, peak):
  assert chips.peak_flops(kind) == peak


def test_kinds_stand_for_one_generation():
  kinds = [kind for tpu in machines.TPUS.values() for kind in tpu.kinds]
  assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("generation", machines.TPUS)
def test_peaks_are_of_one_chip(generation):
  """Units: a factor of 1000, or 8, would show."""
  tpu = machines.tpu(f"{generation}:2x2")
  assert 1e14 < tpu.flops < 1e16
  assert 8 * machines.GIB < tpu.hbm < 256 * machines.GIB
  assert 5e11 < tpu.hbm_bandwidth < 2e13
  assert tpu.network < tpu.link < tpu.hbm_bandwidth
  assert all(len(shape.split("x")) == tpu.axes for shape in tpu.shapes)
  assert 5e8 < tpu.clock < 5e9
