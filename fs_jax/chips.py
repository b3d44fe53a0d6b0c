"""Peak of a device by what JAX calls it: dense bfloat16 products, data sheets.

TPUs are in `machines.TPUS`; GPUs have no more than their peak here.
"""

from fs_jax import machines

# Beginnings of `jax.Device.device_kind`.
_PEAKS = {
  "NVIDIA H200": 989e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H100": 989e12,
  "NVIDIA A100": 312e12,
} | {kind: tpu.flops for tpu in machines.TPUS.values() for kind in tpu.kinds}


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of a device; None where nobody says, as of a CPU."""
  known = [kind for kind in _PEAKS if device_kind.startswith(kind)]
  return _PEAKS[max(known, key=len)] if known else None
