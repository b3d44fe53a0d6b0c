"""Machines by name: "v5e:16x16" is a TPU slice, "h100:4x8" is four nodes.

Their names in clouds, the number of their hosts, and the peaks of one chip.
"""

import math
import os
import re
from typing import NamedTuple


class Tpu(NamedTuple):
  """A generation of TPUs: its names, and what one chip can do.

  Names are from "TPU software versions" of Cloud TPU's documentation and "Plan
  TPUs in GKE" of GKE's, peaks from cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}.
  Nothing here is measured; no real program reaches any peak. Bandwidths are
  bytes/s.
  """

  accelerator: str  # --accelerator-type, before the size
  cores: int  # that a chip counts as in that size
  runtime: str  # --runtime-version
  label: str  # cloud.google.com/gke-tpu-accelerator
  machine: str  # a host's machine type, before the number of its chips
  shapes: tuple[str, ...]  # topologies that have an accelerator type
  kinds: tuple[str, ...]  # prefixes of `jax.Device.device_kind`
  flops: float  # FLOP/s of dense bfloat16 matrix products
  hbm: int  # bytes that a program may use: libtpu 0.0.42 refuses more
  hbm_bandwidth: float
  link: float  # of one link between neighbours, one way
  axes: int  # the torus's axes, with two links a chip each
  closed: int  # a side of at least this many chips has its ends joined
  network: float  # between slices, one way: a chip's share of its host's
  clock: float  # Hz, for the cycles that the compiler counts
  chip_config: str = ""  # libtpu's name for one device a chip, not a core


GIB = 2**30
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"
_V4 = tuple(_CUBIC.split())
_V5P = (*_V4, "16x16x16", "16x16x24")
# A new generation is a new row. A data sheet's interconnect, both ways over all
# links of a chip, is 2 * 2 * axes * link.
# fmt: off
TPUS = {
  "v4": Tpu("v4", 2, "tpu-ubuntu2204-base",
            "tpu-v4-podslice", "ct4p-hightpu", _V4, ("TPU v4",),
            275e12, int(30.75 * GIB), 1228e9, 50e9, 3, 4, 6.25e9, 1.05e9,
            chip_config="megacore"),
  "v5e": Tpu("v5litepod", 1, "v2-alpha-tpuv5-lite",
             "tpu-v5-lite-podslice", "ct5lp-hightpu", _FLAT,
             ("TPU v5 lite", "TPU v5e"),
             197e12, int(15.75 * GIB), 819e9, 50e9, 2, 16, 3.125e9, 1.5e9),
  "v5p": Tpu("v5p", 2, "v2-alpha-tpuv5",
             "tpu-v5p-slice", "ct5p-hightpu", _V5P, ("TPU v5p", "TPU v5"),
             459e12, int(95.74 * GIB), 2765e9, 100e9, 3, 4, 6.25e9, 1.75e9),
  "v6e": Tpu("v6e", 1, "v2-alpha-tpuv6e",
             "tpu-v6e-slice", "ct6e-standard", _FLAT,
             ("TPU v6 lite", "TPU v6e"),
             918e12, int(31.25 * GIB), 1640e9, 100e9, 2, 16, 12.5e9, 1.75e9),
}
# fmt: on


class Slice(NamedTuple):
  """Chips joined by their own network, and the hosts that hold them."""

  tpu: Tpu
  shape: str
  chips: int
  hosts: int

  @property
  def accelerator_type(self) -> str:
    return f"{self.tpu.accelerator}-{self.chips * self.tpu.cores}"

  @property
  def chips_per_host(self) -> int:
    return self.chips // self.hosts

  @property
  def machine_type(self) -> str:
    return f"{self.tpu.machine}-{self.chips_per_host}t"


class Gpus(NamedTuple):
  """Nodes of GPUs."""

  kind: str  # the cluster's name for it; "" = any
  nodes: int
  per_node: int


def tpu(topology: str) -> Tpu:
  """Looks up the generation of "v5e:16x16", whatever the shape.

  Raises:
    ValueError: it is not in the table.
  """
  generation = topology.partition(":")[0]
  if generation not in TPUS:
    raise ValueError(
      f"topology: must begin with one of {', '.join(TPUS)}; got {topology!r}. "
      "set config.mesh.topology or give --topology=v5e:16x16"
    )
  return TPUS[generation]


def parse_slice(topology: str) -> Slice:
  """Parses "v5e:16x16".

  Raises:
    ValueError: an unknown generation, or a shape with no name to order it by.
  """
  generation, _, shape = topology.partition(":")
  chip = tpu(topology)
  if shape not in chip.shapes:
    raise ValueError(
      f"topology: {generation} must be one of {', '.join(chip.shapes)}; got "
      f"{topology!r}. set config.mesh.topology or give --topology={generation}:"
      f"{chip.shapes[0]}"
    )
  chips = math.prod(map(int, shape.split("x")))
  # Eight chips are also sold as two hosts of four. One host has no peer to
  # wait for, so that is what 2x4 means here.
  return Slice(chip, shape, chips, chips // (8 if shape == "2x4" else 4))


def parse_gpus(topology: str) -> Gpus:
  """Parses "h100:4x8", four nodes of eight GPUs; "gpu:4x8" takes any kind.

  Raises:
    ValueError: anything else, TPUs included.
  """
  match = re.fullmatch(r"([a-z][\w.-]*):([1-9]\d*)x([1-9]\d*)", topology)
  if not match or match[1] in TPUS:
    raise ValueError(
      "topology: must be <kind of GPU>:<nodes>x<GPUs a node> on slurm; got "
      f"{topology!r}. give --topology=h100:4x8, or gpu:4x8 for any kind"
    )
  kind = "" if match[1] == "gpu" else match[1]
  return Gpus(kind, int(match[2]), int(match[3]))


# By prefix of `jax.Device.device_kind`.
_PEAKS = {
  "NVIDIA H200": 989e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H100": 989e12,
  "NVIDIA A100": 312e12,
} | {kind: tpu.flops for tpu in TPUS.values() for kind in tpu.kinds}


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of a device; None if unknown, as for a CPU."""
  known = [kind for kind in _PEAKS if device_kind.startswith(kind)]
  return _PEAKS[max(known, key=len)] if known else None


def count_cores() -> int:
  """CPU cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):  # Linux; macOS has none
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
