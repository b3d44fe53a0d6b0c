"""Who may import whom: the rooms of the house, read from its source.

A module imports its own room or one on a lower floor, and inside a room there
is no circle. A new file needs no entry here; a new room does.
"""

import ast
import functools
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Rooms, lowest floor first; those of one floor do not import each other. The
# ground are the modules that lie in fs_jax itself.
FLOORS = (
  ("ground",),
  ("machine", "models"),
  ("data",),
  ("runs",),
  ("gallery",),
  ("search",),
  ("train", "serve"),
  ("evaluate",),
)
FLOOR_OF = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}

# Heavy packages, and the modules (with all under them) that may import them.
OWNERS = {
  "clu": ("fs_jax.runs.stages",),
  "grain": ("fs_jax.data.order", "fs_jax.data.pipeline"),
  "ml_collections": ("fs_jax.configdict", "launch"),
  "open_clip": ("fs_jax.evaluate.speed.baseline_open_clip",),
  "orbax": ("fs_jax.runs.checkpoint",),
  "ray": ("fs_jax.serve", "launch"),
  "scann": ("fs_jax.gallery.scann",),
  "starlette": ("fs_jax.serve",),
  "tensorboardX": ("fs_jax.runs.journal",),
  "tensorflow": (),
  "tensorflow_datasets": ("fs_jax.data",),
  "tokenizers": ("fs_jax.data.tokenizer", "fs_jax.data.vocabulary"),
  "torch": ("fs_jax.evaluate.speed.baseline_open_clip",),
  "torchvision": ("fs_jax.evaluate.speed.baseline_open_clip",),
  "uvicorn": ("fs_jax.serve", "launch"),
  "yaml": ("fs_jax.machine.pods.gke",),
}

# What `import fs_jax`, its ground and its rooms leave alone.
NOT_LOADED = ("jax", "orbax", "scann", "starlette", "tensorflow", "uvicorn")

PROJECT = ("fs_jax", "configs", "launch", "tests")


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, int]]:
  """Yields (dotted name, line) of every import, those in functions included.

  `from a import b` is a.b: whether b is a module does not matter here.
  """
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, node.lineno
    elif isinstance(node, ast.ImportFrom):
      parents = package.split(".")
      base = parents[: len(parents) - node.level + 1] if node.level else []
      base += node.module.split(".") if node.module else []
      for alias in node.names:
        yield ".".join([*base, alias.name]), node.lineno
    elif isinstance(node, ast.Call) and node.args:
      name = getattr(node.func, "attr", getattr(node.func, "id", None))
      first = node.args[0]
      if name in ("import_module", "__import__") and (
        isinstance(first, ast.Constant) and isinstance(first.value, str)
      ):
        yield first.value, node.lineno


def within(name: str, module: str) -> bool:
  """True where `name` is `module` or something inside it."""
  return name == module or name.startswith(module + ".")


@functools.cache
def ground() -> frozenset[str]:
  """Modules that lie in fs_jax itself."""
  return frozenset(path.stem for path in (ROOT / "fs_jax").glob("[!_]*.py"))


def room_of(module: str) -> str | None:
  """The room of a dotted name; None of fs_jax itself, and of what is not."""
  name = [*module.split("."), ""][1]
  if name in ground():
    return "ground"
  return name if name in FLOOR_OF else None


def project_rule(module: str, target: str) -> str | None:
  """The rule that `module` breaks by importing `target` of this project."""
  here, there = module.split("."), target.split(".")
  if there[0] == "tests":
    return "nothing imports tests"
  if here[0] == "launch":
    return None
  if there[0] == "launch":
    return "only launch imports launch"
  if there[0] == "configs":
    return None if here[0] == "configs" else "fs_jax never imports configs"
  if len(there) == 1:
    return "import the module you use: from fs_jax.<room> import <module>"
  if there[1].startswith("__"):  # fs_jax.__version__
    return None
  theirs = room_of(target)
  if theirs is None:
    return f"{there[1]} is no room; add it to FLOORS in tests/test_floors.py"
  if here[0] == "configs":
    return None if theirs == "ground" else "configs import only the ground"
  ours = room_of(module)
  if ours is None:
    return "fs_jax/__init__.py imports nothing of the project"
  if ours != theirs and FLOOR_OF[theirs] >= FLOOR_OF[ours]:
    return (
      f"imports go downward; {ours} is on floor {FLOOR_OF[ours]}, {theirs} on "
      f"floor {FLOOR_OF[theirs]}"
    )
  return None


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
  """A line for each import in the `source` of `module` that may not be."""
  package = module if is_package else module.rpartition(".")[0]
  found = []
  for target, line in imports(ast.parse(source), package):
    top = target.split(".")[0]
    rule = None
    if top in PROJECT:
      rule = project_rule(module, target)
    elif top in OWNERS and not any(within(module, m) for m in OWNERS[top]):
      owners = ", ".join(OWNERS[top]) or "no module"
      rule = f"{top} is imported by {owners} only (OWNERS)"
    if rule:
      found.append(f"{module}:{line} imports {target}: {rule}")
  return found


def modules() -> Iterator[tuple[str, pathlib.Path]]:
  for folder in ("fs_jax", "configs", "launch"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      parts = path.relative_to(ROOT).with_suffix("").parts
      yield ".".join(parts).removesuffix(".__init__"), path


def test_imports_keep_to_the_floors():
  found = [
    v
    for module, path in modules()
    for v in violations(
      module, path.read_text(encoding="utf-8"), path.stem == "__init__"
    )
  ]
  assert not found, "\n" + "\n".join(found)


def graph() -> dict[str, set[str]]:
  """Modules of fs_jax, and those of fs_jax that each imports."""
  known = {name: path for name, path in modules() if within(name, "fs_jax")}
  found: dict[str, set[str]] = {}
  for name, path in known.items():
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    targets = {t for t, _ in imports(ast.parse(path.read_text()), package)}
    # `from a.b import c` is a.b.c, or c in a.b.
    whole = targets | {t.rpartition(".")[0] for t in targets}
    found[name] = (whole & set(known)) - {name}
  return found


def circle(graph: dict[str, set[str]]) -> list[str]:
  """Modules that import each other in turn; none if there is no circle."""
  done: set[str] = set()

  def walk(name: str, path: list[str]) -> list[str]:
    if name in path:
      return path[path.index(name) :]
    if name in done:
      return []
    for target in sorted(graph[name]):
      if found := walk(target, [*path, name]):
        return found
    done.add(name)
    return []

  return next((found for name in graph if (found := walk(name, []))), [])


def test_no_module_imports_itself_through_others():
  assert not circle(graph())


def test_a_circle_is_found():
  assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
  assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def folders() -> list[pathlib.Path]:
  """Rooms, and the packages in them; datasets list themselves."""
  packages = [p.parent for p in (ROOT / "fs_jax").rglob("__init__.py")]
  return sorted(p for p in packages if "datasets" not in p.parts)


@pytest.mark.parametrize(
  "folder", folders(), ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_room_lists_its_files_lower_ones_first(folder):
  listed = re.findall(
    r"^    (\w+)  +\S", (folder / "__init__.py").read_text(), re.M
  )
  own = {
    path.stem
    for path in folder.iterdir()
    if (path.suffix == ".py" or (path / "__init__.py").exists())
    and not path.name.startswith("_")
  }
  assert set(listed) == own, "one line a file, indented: `name  what it is`"
  prefix = ".".join(folder.relative_to(ROOT).parts)
  above: dict[str, int] = {name: i for i, name in enumerate(listed)}
  for name, targets in graph().items():
    if not name.startswith(prefix + "."):
      continue
    here = name.removeprefix(prefix + ".").split(".")[0]
    for target in targets:
      if target.startswith(prefix + "."):
        there = target.removeprefix(prefix + ".").split(".")[0]
        if here in above and there in above:
          assert above[there] <= above[here], f"{here} imports {there}"


@pytest.mark.parametrize(
  ("module", "source", "rule"),
  [
    ("fs_jax.machine.files", "from fs_jax.runs import stages", "downward"),
    ("fs_jax.machine.files", "import fs_jax.runs.stages as s", "downward"),
    ("fs_jax.machine.files", "from fs_jax.runs.stages import load", "downward"),
    ("fs_jax.machine.files", "from ..runs import stages", "downward"),
    ("fs_jax.data.x", "def f():\n  from fs_jax.train import loop", "downward"),
    ("fs_jax.models.fast", "from ..train import tasks", "downward"),
    ("fs_jax.models.fast", "from fs_jax.machine import files", "downward"),
    ("fs_jax.types", "from fs_jax.models import layers", "downward"),
    ("fs_jax.train.train", "from fs_jax.evaluate import metrics", "downward"),
    ("fs_jax.serve.app", "from fs_jax.train import tasks", "downward"),
    ("fs_jax.train.train", "from configs import tiny", "never imports configs"),
    ("fs_jax.train.train", "import launch.train", "only launch"),
    ("fs_jax.train.train", "from tests import conftest", "tests"),
    ("fs_jax.train.train", "import fs_jax", "module you use"),
    ("fs_jax.train.train", "from fs_jax import utils", "no room"),
    ("fs_jax.train.train", "from fs_jax.utils import x", "no room"),
    ("fs_jax", "from fs_jax.train import losses", "nothing of the project"),
    ("configs.tiny", "from fs_jax.train import losses", "only the ground"),
    ("configs.tiny", "from launch import train", "only launch"),
    ("fs_jax.train.train", "import orbax.checkpoint as ocp", "OWNERS"),
    ("fs_jax.data.sources", "from grain import python", "OWNERS"),
    ("fs_jax.data", "import tokenizers", "OWNERS"),
    ("fs_jax.gallery.indexer", "import scann", "OWNERS"),
    ("fs_jax.search.rerank", "importlib.import_module('scann')", "OWNERS"),
    ("fs_jax.gallery.index", "import tensorflow as tf", "OWNERS"),
    ("launch.train", "import clu.metrics", "OWNERS"),
  ],
)
def test_violation_is_found(module, source, rule):
  found = violations(module, source)
  assert len(found) == 1
  assert rule in found[0]


@pytest.mark.parametrize(
  ("module", "source"),
  [
    ("fs_jax.train.train", "from fs_jax import config, types"),
    ("fs_jax.train.train", "from fs_jax.train import losses, tasks"),
    ("fs_jax.search.rerank", "from fs_jax.gallery import memories"),
    ("fs_jax.models.fast", "from fs_jax.models import layers, vision"),
    ("fs_jax.models.fast", "from . import layers"),
    ("fs_jax.serve.app", "from fs_jax.search import searcher"),
    ("fs_jax.serve.app", "import starlette.routing, uvicorn"),
    ("fs_jax.serve.app", "from fs_jax import __version__"),
    ("configs.tiny", "from configs import base\nfrom fs_jax import config"),
    ("launch.train", "import fs_jax\nfrom fs_jax.evaluate import results"),
    ("launch.train", "from configs import tiny\nfrom launch import flags"),
    ("fs_jax.gallery.scann", "import scann"),
    ("fs_jax.data.pipeline", "import grain.python, jax, numpy as np"),
  ],
)
def test_allowed_import_is_left_alone(module, source):
  assert violations(module, source) == []


def test_importing_the_house_and_its_rooms_is_light():
  """The rooms' tables of contents import nothing."""
  wanted = ["fs_jax", *(f"fs_jax.{room}" for room in FLOOR_OF)]
  there = [w for w in wanted if (ROOT / w.replace(".", "/")).is_dir()]
  assert len(there) > 5
  assert loaded(there, NOT_LOADED) == []


def test_the_ground_is_light():
  names = [f"fs_jax.{name}" for name in ground()]
  assert loaded(names, [n for n in NOT_LOADED if n != "jax"]) == []


def loaded(names: list[str], packages: list[str] | tuple[str, ...]) -> list:
  """Those of `packages` that importing `names` loads."""
  code = (
    "import importlib, json, sys\n"
    f"for name in {names!r}:\n"
    "  importlib.import_module(name)\n"
    f"print(json.dumps([n for n in {packages!r} if n in sys.modules]))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)
