"""Names of machines: "v5e:16x16" is a TPU slice, "h100:4x8" are four nodes.

What clouds call the same thing, and how many hosts hold it.
"""

import math
import re
from typing import NamedTuple


class Tpu(NamedTuple):
  """Names of a TPU version, from "TPU software versions" of Cloud TPU's
  documentation and "Plan TPUs in GKE" of GKE's."""

  accelerator: str  # --accelerator-type, before the size
  cores: int  # what a chip counts for in that size
  runtime: str  # --runtime-version
  label: str  # cloud.google.com/gke-tpu-accelerator
  machine: str  # type of a host, before the number of its chips
  shapes: tuple[str, ...]  # those that an accelerator type stands for


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"
_V4 = tuple(_CUBIC.split())
_V5P = (*_V4, "16x16x16", "16x16x24")
# fmt: off
TPUS = {
  "v4": Tpu("v4", 2, "tpu-ubuntu2204-base",
            "tpu-v4-podslice", "ct4p-hightpu", _V4),
  "v5e": Tpu("v5litepod", 1, "v2-alpha-tpuv5-lite",
             "tpu-v5-lite-podslice", "ct5lp-hightpu", _FLAT),
  "v5p": Tpu("v5p", 2, "v2-alpha-tpuv5",
             "tpu-v5p-slice", "ct5p-hightpu", _V5P),
  "v6e": Tpu("v6e", 1, "v2-alpha-tpuv6e",
             "tpu-v6e-slice", "ct6e-standard", _FLAT),
}
# fmt: on


class Slice(NamedTuple):
  """Chips that share their own network, and the hosts that hold them."""

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
  kind: str  # as the cluster names it; "" = any
  nodes: int
  per_node: int


def tpu_slice(topology: str) -> Slice:
  """Reads "v5e:16x16".

  Raises:
    ValueError: an unknown version, or a shape that has no name to order it by.
  """
  version, _, shape = topology.partition(":")
  if version not in TPUS:
    raise ValueError(
      f"topology: must begin with one of {', '.join(TPUS)}; got {topology!r}. "
      "set config.mesh.topology or give --topology=v5e:16x16"
    )
  tpu = TPUS[version]
  if shape not in tpu.shapes:
    raise ValueError(
      f"topology: {version} must be one of {', '.join(tpu.shapes)}; got "
      f"{topology!r}. set config.mesh.topology or give --topology"
    )
  chips = math.prod(map(int, shape.split("x")))
  # Eight chips are also sold as two hosts of four. One host has no peer to
  # wait for, so that is what 2x4 means here.
  return Slice(tpu, shape, chips, chips // (8 if shape == "2x4" else 4))


def gpus(topology: str) -> Gpus:
  """Reads "h100:4x8", four nodes of eight; "gpu:4x8" takes any kind.

  Raises:
    ValueError: anything else, TPUs included.
  """
  found = re.fullmatch(r"([a-z][\w.-]*):([1-9]\d*)x([1-9]\d*)", topology)
  if not found or found[1] in TPUS:
    raise ValueError(
      "topology: must be <kind of GPU>:<nodes>x<GPUs a node> on slurm; got "
      f"{topology!r}. give --topology=h100:4x8, or gpu:4x8 for any kind"
    )
  kind = "" if found[1] == "gpu" else found[1]
  return Gpus(kind, int(found[2]), int(found[3]))
