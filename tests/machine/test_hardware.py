"""Names of machines against the tables of Cloud TPU's and GKE's guides."""

import math

import pytest

from fs_jax.machine import hardware


@pytest.mark.parametrize(
  ("topology", "accelerator", "hosts", "machine"),
  [
    ("v4:2x2x1", "v4-8", 1, "ct4p-hightpu-4t"),
    ("v4:4x4x4", "v4-128", 16, "ct4p-hightpu-4t"),
    ("v5e:2x2", "v5litepod-4", 1, "ct5lp-hightpu-4t"),
    ("v5e:2x4", "v5litepod-8", 1, "ct5lp-hightpu-8t"),
    ("v5e:4x4", "v5litepod-16", 4, "ct5lp-hightpu-4t"),
    ("v5e:16x16", "v5litepod-256", 64, "ct5lp-hightpu-4t"),
    ("v5p:2x2x1", "v5p-8", 1, "ct5p-hightpu-4t"),
    ("v5p:4x4x4", "v5p-128", 16, "ct5p-hightpu-4t"),
    ("v6e:2x4", "v6e-8", 1, "ct6e-standard-8t"),
    ("v6e:16x16", "v6e-256", 64, "ct6e-standard-4t"),
  ],
)
def test_a_slice_by_its_other_names(topology, accelerator, hosts, machine):
  at = hardware.parse_slice(topology)
  assert at.accelerator_type == accelerator
  assert (at.hosts, at.machine_type) == (hosts, machine)


@pytest.mark.parametrize("version", hardware.TPUS)
def test_an_accelerator_type_stands_for_one_shape(version):
  shapes = hardware.TPUS[version].shapes
  names = {
    hardware.parse_slice(f"{version}:{shape}").accelerator_type
    for shape in shapes
  }
  assert len(names) == len(shapes)
  for shape in shapes:
    at = hardware.parse_slice(f"{version}:{shape}")
    assert at.hosts * at.chips_per_host == at.chips
    assert at.chips == math.prod(int(side) for side in shape.split("x"))


@pytest.mark.parametrize(
  ("topology", "message"),
  [
    ("", "must begin with one of v4, v5e, v5p, v6e; got ''"),
    ("v9:2x2", "must begin with"),
    ("16x16", "must begin with"),
    ("v5e", "v5e must be one of 2x2"),
    ("v5e:16x15", "v5e must be one of 2x2"),
    ("v5e:4x4x4", "v5e must be one of 2x2"),
    ("v5p:4x4", "v5p must be one of 2x2x1"),
    ("h100:4x8", "must begin with"),
  ],
)
def test_a_slice_that_nobody_sells(topology, message):
  with pytest.raises(ValueError, match=message):
    hardware.parse_slice(topology)


def test_gpus():
  assert hardware.parse_gpus("h100:4x8") == ("h100", 4, 8)
  assert hardware.parse_gpus("gpu:1x2") == ("", 1, 2)
  assert hardware.parse_gpus("nvidia_a100-sxm4-80gb:2x4").nodes == 2


@pytest.mark.parametrize(
  "topology", ["", "v5e:16x16", "h100", "h100:8", "h100:0x8", "h100:2x2x2"]
)
def test_gpus_that_are_none(topology):
  with pytest.raises(ValueError, match="give --topology=h100:4x8"):
    hardware.parse_gpus(topology)


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
    ("NVIDIA H100 PCIe", 756e12),  # not as its prefix alone
    ("NVIDIA H200", 989e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("cpu", None),
    ("TPU v3", None),
    ("", None),
  ],
)
def test_the_longest_name_that_fits_says_the_peak(kind, peak):
  assert hardware.peak_flops(kind) == peak


def test_kinds_stand_for_one_generation():
  kinds = [kind for tpu in hardware.TPUS.values() for kind in tpu.kinds]
  assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("generation", hardware.TPUS)
def test_peaks_are_of_one_chip(generation):
  """Units: a factor of 1000, or 8, would show."""
  tpu = hardware.tpu(f"{generation}:2x2")
  assert 1e14 < tpu.flops < 1e16
  assert 8 * hardware.GIB < tpu.hbm < 256 * hardware.GIB
  assert 5e11 < tpu.hbm_bandwidth < 2e13
  assert tpu.network < tpu.link < tpu.hbm_bandwidth
  assert all(len(shape.split("x")) == tpu.axes for shape in tpu.shapes)
  assert 5e8 < tpu.clock < 5e9
