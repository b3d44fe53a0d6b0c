"""The sets of versions that the tests run on, and which of them is here."""

import importlib.metadata

from launch import doctor

SETS = dict(zip(("oldest", "newest"), doctor.CONSTRAINTS, strict=True))
PINS = {name: doctor.read_pins(file) for name, file in SETS.items()}
# Packages that decide which bits a computation ends with.
NUMERIC = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def here() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in NUMERIC}


def find_set() -> str:
  """The installed set's name; "" for other versions or a mixture."""
  for name, pins in PINS.items():
    if here() == {package: pins[package] for package in NUMERIC}:
      return name
  return ""


def describe() -> str:
  found = ", ".join(f"{name} {version}" for name, version in here().items())
  if name := find_set():
    return f"versions: the {name} ({SETS[name]}): {found}"
  return f"versions: of neither {' nor '.join(SETS.values())}: {found}"
