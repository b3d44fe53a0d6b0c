"""Who may import whom: the floors of the framework, read from its source.

Imports go downward, or sideways except on floor 4. Edit the tables when a
module is added; everything under them follows from them.
"""

import ast
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Modules and packages directly under fs_jax, lowest floor first.
FLOORS = (
  ("types", "config", "configdict", "paths", "machines"),
  (
    "models",
    "losses",
    "metrics",
    "optim",
    "gradients",
    "flops",
    "hlo",
  ),
  (
    *("sharding", "ring", "processes", "checkpoint", "compiled", "files"),
    *("errors", "checksums", "uploads", "report", "profile", "peer"),
    *("contract", "provenance", "console", "parts", "data"),
  ),
  (
    *("tasks", "encode", "corpus", "exact", "tuner", "index", "rerank"),
    *("store", "calibrate", "runs", "lineage", "loop", "mine", "rankers"),
    *("pair_scores", "weigh"),
    *("attention", "cases", "figures", "plots"),
  ),
  (
    "train",
    "validation",
    "retrieve",
    "evaluate",
    "page",
    "bench",
    "bench_train",
    "peer_open_clip",
    "serve",
    "plan",
    "pods",
    "local",
  ),
  (
    "workdir",
    "gallery",
    "answers",
    "study",
    "evidence",
    "advice",
    "plans",
    "bench_serve",
  ),
)

# Heavy packages, and the modules (with all under them) that may import them.
OWNERS = {
  "clu": ("fs_jax.runs",),
  "grain": ("fs_jax.data.pipeline",),
  "ml_collections": ("fs_jax.configdict", "launch"),
  "open_clip": ("fs_jax.peer_open_clip",),
  "orbax": ("fs_jax.checkpoint",),
  "ray": ("fs_jax.serve", "launch"),
  "scann": ("fs_jax.index",),
  "starlette": ("fs_jax.serve",),
  "tensorboardX": ("fs_jax.report",),
  "tensorflow": (),
  "tensorflow_datasets": ("fs_jax.data",),
  "tokenizers": ("fs_jax.data.tokenizer",),
  "torch": ("fs_jax.peer_open_clip",),
  "torchvision": ("fs_jax.peer_open_clip",),
  "uvicorn": ("fs_jax.serve", "launch"),
  "yaml": ("fs_jax.pods",),
}

# What `import fs_jax` and its vocabulary (floor 0) leave alone.
NOT_LOADED = ("orbax", "scann", "starlette", "tensorflow", "uvicorn")

FLOOR_OF = {name: i for i, names in enumerate(FLOORS) for name in names}
PROGRAMS = 4  # the floor whose modules import nothing from each other
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
    return "import the module you use: from fs_jax import <module>"
  name = there[1]
  if name.startswith("__"):  # fs_jax.__version__
    return None
  if name not in FLOOR_OF:
    return f"place {name} on a floor: add it to FLOORS in tests/test_floors.py"
  if here[0] == "configs":
    return None if FLOOR_OF[name] == 0 else "configs import only floor 0"
  if len(here) == 1:
    return "fs_jax/__init__.py imports nothing of the project"
  own = here[1]
  if own == name or own not in FLOOR_OF:  # the latter: test_every_module
    return None
  if FLOOR_OF[name] > FLOOR_OF[own]:
    return (
      f"imports go downward; {own} is on floor {FLOOR_OF[own]},"
      f" {name} on floor {FLOOR_OF[name]}"
    )
  if FLOOR_OF[own] == PROGRAMS == FLOOR_OF[name]:
    return f"programs (floor {PROGRAMS}) import nothing from each other"
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


def test_every_module_is_on_a_floor():
  names = {
    module.split(".")[1]
    for module, _ in modules()
    if "." in module and within(module, "fs_jax")
  }
  lost = sorted(names - set(FLOOR_OF))
  assert not lost, f"place {lost} in FLOORS of tests/test_floors.py"


def test_no_module_is_on_two_floors():
  assert len(FLOOR_OF) == sum(map(len, FLOORS))


@pytest.mark.parametrize(
  ("module", "source", "rule"),
  [
    ("fs_jax.losses", "from fs_jax import sharding", "downward"),
    ("fs_jax.losses", "import fs_jax.sharding as s", "downward"),
    ("fs_jax.losses", "from fs_jax.sharding import put", "downward"),
    ("fs_jax.losses", "from .sharding import put", "downward"),
    ("fs_jax.losses", "def f():\n  from fs_jax import train", "downward"),
    ("fs_jax.models.fast", "from .. import tasks", "downward"),
    ("fs_jax.models.fast", "from ..data import pipeline", "downward"),
    ("fs_jax.types", "from fs_jax import losses", "downward"),
    ("fs_jax.train", "from fs_jax import evaluate", "each other"),
    ("fs_jax.serve.app", "from fs_jax import retrieve", "each other"),
    ("fs_jax.train", "from configs import tiny", "never imports configs"),
    ("fs_jax.train", "import launch.train", "only launch"),
    ("fs_jax.train", "from tests import conftest", "tests"),
    ("fs_jax.train", "import fs_jax", "module you use"),
    ("fs_jax.train", "from fs_jax import utils", "FLOORS"),
    ("fs_jax", "from fs_jax import losses", "nothing of the project"),
    ("configs.tiny", "from fs_jax import losses", "only floor 0"),
    ("configs.tiny", "from launch import train", "only launch"),
    ("fs_jax.train", "import orbax.checkpoint as ocp", "OWNERS"),
    ("fs_jax.data.sources", "from grain import python", "OWNERS"),
    ("fs_jax.data", "import tokenizers", "OWNERS"),
    ("fs_jax.indexer", "import scann", "OWNERS"),
    ("fs_jax.rerank", "importlib.import_module('scann')", "OWNERS"),
    ("fs_jax.index", "import tensorflow as tf", "OWNERS"),
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
    ("fs_jax.train", "from fs_jax import losses, sharding, tasks"),
    ("fs_jax.rerank", "from fs_jax import store"),
    ("fs_jax.models.fast", "from fs_jax.models import layers, vision"),
    ("fs_jax.models.fast", "from . import layers"),
    ("fs_jax.serve.app", "from fs_jax.serve import state"),
    ("fs_jax.serve.app", "import starlette.routing, uvicorn"),
    ("fs_jax.serve.app", "from fs_jax import __version__"),
    ("configs.tiny", "from configs import base\nfrom fs_jax import config"),
    ("launch.train", "import fs_jax\nfrom fs_jax import train, evaluate"),
    ("launch.train", "from configs import tiny\nfrom launch import flags"),
    ("fs_jax.index", "import scann"),
    ("fs_jax.data.pipeline", "import grain.python, jax, numpy as np"),
  ],
)
def test_allowed_import_is_left_alone(module, source):
  assert violations(module, source) == []


@pytest.mark.parametrize("names", [(), FLOORS[0]], ids=["fs_jax", "floor 0"])
def test_import_is_light(names):
  wanted = [f"fs_jax.{n}" for n in names if (ROOT / f"fs_jax/{n}.py").exists()]
  code = (
    "import importlib, json, sys\n"
    f"for name in {['fs_jax', *wanted]!r}:\n"
    "  importlib.import_module(name)\n"
    f"print(json.dumps([n for n in {NOT_LOADED!r} if n in sys.modules]))"
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
  assert json.loads(done.stdout) == []
