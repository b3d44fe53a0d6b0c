"""What accelerators can do, by name: peaks from their makers' data sheets.

Peaks are of dense bfloat16 products. Nothing here is measured; no real program
reaches any of it.
"""

from typing import NamedTuple

GB = 2**30


class Chip(NamedTuple):
  """A TPU chip. Bandwidths are bytes/s."""

  flops: float  # FLOP/s, bfloat16
  hbm: int  # bytes that a program may use, as its compiler enforces
  hbm_bandwidth: float
  link: float  # one way, of one link between neighbours
  axes: int  # of the torus: each has two links a chip
  network: float  # one way, between slices, a chip's share of its host's
  clock: float  # Hz, of the cycles that the compiler counts


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; bidirectional interconnect a chip
# is 2 * 2 * axes * link. `hbm` is what libtpu 0.0.42 says when it refuses.
TPUS = {
  "v4": Chip(275e12, int(30.75 * GB), 1228e9, 50e9, 3, 6.25e9, 1.05e9),
  "v5e": Chip(197e12, int(15.75 * GB), 819e9, 50e9, 2, 3.125e9, 1.5e9),
  "v5p": Chip(459e12, int(95.74 * GB), 2765e9, 100e9, 3, 6.25e9, 1.75e9),
  "v6e": Chip(918e12, int(31.25 * GB), 1640e9, 100e9, 2, 12.5e9, 1.75e9),
}

# Beginnings of `jax.Device.device_kind`, longest first.
_KINDS = (
  ("TPU v5 lite", TPUS["v5e"].flops),
  ("TPU v6 lite", TPUS["v6e"].flops),
  ("TPU v6e", TPUS["v6e"].flops),
  ("TPU v5e", TPUS["v5e"].flops),
  ("TPU v5p", TPUS["v5p"].flops),
  ("TPU v5", TPUS["v5p"].flops),
  ("TPU v4", TPUS["v4"].flops),
  ("NVIDIA H200", 989e12),
  ("NVIDIA H100 PCIe", 756e12),
  ("NVIDIA H100", 989e12),
  ("NVIDIA A100", 312e12),
)


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of a device; None where nobody says, as of a CPU."""
  for beginning, flops in _KINDS:
    if device_kind.startswith(beginning):
      return flops
  return None


def tpu(generation: str) -> Chip:
  """The chip of a topology's name: "v5e" of "v5e:16x16".

  Raises:
    ValueError: a generation that is not in the table.
  """
  if generation not in TPUS:
    raise ValueError(
      f"topology: a chip must be one of {', '.join(TPUS)}; got "
      f"{generation!r}. name one, or add it to fs_jax/chips.py"
    )
  return TPUS[generation]
