"""Every recipe is built, shape-only, and written down in tests/golden/.

A change that changes a run shows there as a diff. Meant so? Then

    UPDATE_GOLDEN=1 python -m pytest tests/test_configs.py
"""

import dataclasses
import difflib
import functools
import importlib
import math
import os
import pathlib
import re
import types as builtin

import jax
import numpy as np
import pytest

from fs_jax import config, configdict, sizes, trees
from fs_jax.machine import sharding
from fs_jax.train import step, tasks, train

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
FILES = sorted(
  path.stem
  for path in (ROOT / "configs").glob("*.py")
  if not path.stem.startswith("_")
)


def stages_of(file):
  """What get_config's docstring lists: "stage: fast, slow or distill"."""
  docstring = importlib.import_module(f"configs.{file}").get_config.__doc__
  match = re.search(r"stage: ([\w, \n]+)", docstring)
  assert match, f"configs/{file}.py: get_config must list its stages"
  return re.split(r",\s*|\s+or\s+", match[1].strip())


RECIPES = [(file, stage) for file in FILES for stage in stages_of(file)]
each = pytest.mark.parametrize(
  ("file", "stage"), RECIPES, ids=[f"{f}-{s}" for f, s in RECIPES]
)


@functools.cache
def recipe(file, stage):
  module = importlib.import_module(f"configs.{file}")
  return configdict.parse(module.get_config(stage))


@functools.cache
def shapes_of(file, stage):
  """Shapes of the parameters, with as many words as there may be at most."""
  cfg = recipe(file, stage)
  task = tasks.make(cfg, cfg.tokens.vocabulary)
  return jax.eval_shape(task.init, jax.random.key(0))


def earlier(file, folder):
  """Which stage of a file trains in `folder`."""
  (stage,) = (s for s in stages_of(file) if recipe(file, s).folder == folder)
  return stage


def flat(values, prefix=""):
  for key, value in values.items():
    if isinstance(value, dict):
      yield from flat(value, f"{prefix}{key}.")
    elif isinstance(value, tuple) and value and isinstance(value[0], tuple):
      yield from ((f"{prefix}{key}[{i}]", x) for i, x in enumerate(value))
    else:
      yield prefix + key, value


def described(file, stage):
  """Fields, placements and sizes of a stage, known without data."""
  cfg, shapes = recipe(file, stage), shapes_of(file, stage)
  placed = sharding.of_params(cfg.mesh.rules, shapes, sharding.mesh(cfg.mesh))
  lines = [f"{key} = {value!r}" for key, value in flat(dataclasses.asdict(cfg))]
  leaves = jax.tree.leaves(shapes)
  count = sum(math.prod(leaf.shape) for leaf in leaves)
  lines += ["", f"{count} parameters at most, in {len(leaves)} arrays:"]
  for name, leaf, placement in zip(
    trees.names(shapes), leaves, jax.tree.leaves(placed), strict=True
  ):
    axes = ", ".join(axis or "-" for axis in placement.spec)
    shape = ", ".join(map(str, leaf.shape))
    lines.append(f"{name} {leaf.dtype} [{shape}] on ({axes})")
  return "\n".join(lines) + "\n"


@each
def test_a_recipe_is_as_it_was(file, stage):
  path, new = GOLDEN / f"{file}-{stage}.txt", described(file, stage)
  if os.environ.get("UPDATE_GOLDEN"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(new)
  old = path.read_text() if path.exists() else ""
  if new != old:
    names = str(path.relative_to(ROOT)), f"configs/{file}.py:{stage}"
    diff = difflib.unified_diff(
      old.splitlines(), new.splitlines(), *names, lineterm="", n=0
    )
    pytest.fail(
      "\n".join([*diff, "", "meant so? write it down with UPDATE_GOLDEN=1"]),
      pytrace=False,
    )


def test_nothing_is_written_down_that_is_no_more():
  assert RECIPES
  written = {path.stem for path in GOLDEN.glob("*")}
  assert written <= {f"{file}-{stage}" for file, stage in RECIPES}


@pytest.mark.slow
@each
def test_a_recipe_builds_and_its_loss_is_a_number(file, stage):
  cfg = recipe(file, stage)
  made = step.program(cfg, cfg.tokens.vocabulary, sharding.mesh(cfg.mesh))
  state, metrics = jax.eval_shape(
    made.step, made.state, made.frozen, made.batch
  )
  assert {"loss", "grad_norm", "learning_rate"} < metrics.keys()
  for number in metrics.values():
    assert (number.shape, number.dtype) == ((), np.float32)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
    lambda x: (x.shape, x.dtype), made.state
  )
  if cfg.init.teacher and made.frozen.keys() - {"gamma", "tau"}:
    teacher = shapes_of(file, earlier(file, cfg.init.teacher))
    for name, leaf in named(made.frozen).items():
      if name not in ("gamma", "tau"):
        assert leaf.shape == named(teacher)[name].shape, name


def named(tree):
  return dict(zip(trees.names(tree), jax.tree.leaves(tree), strict=True))


@each
def test_a_recipe_starts_from_stages_that_fit(file, stage):
  cfg, shapes = recipe(file, stage), shapes_of(file, stage)
  if cfg.init.stage:
    donor = shapes_of(file, earlier(file, cfg.init.stage))
    run = builtin.SimpleNamespace(params=donor)
    given = train._first_params(cfg, run)
    own = dict(zip(trees.names(shapes), jax.tree.leaves(shapes), strict=True))
    leaves = jax.tree.leaves(given)
    assert leaves
    for name, leaf in zip(trees.names(given), leaves, strict=True):
      assert own[name].shape == leaf.shape, name
  if cfg.stage == "distill":
    teacher = recipe(file, earlier(file, cfg.init.teacher))
    assert teacher.stage == "slow"
    assert teacher.slow == cfg.slow
    assert teacher.data.image_size == cfg.data.image_size
    assert teacher.data.frames == cfg.data.frames
  for other in stages_of(file):  # one vocabulary for all stages
    assert recipe(file, other).tokens == cfg.tokens


@each
def test_a_recipe_survives_json_and_flags(file, stage):
  cfg = recipe(file, stage)
  assert configdict.from_json(configdict.to_json(cfg)) == cfg
  assert configdict.parse(configdict.edit(cfg)) == cfg


def test_named_sizes_build():
  """Every usual name is a Vision that takes its patch."""
  for name, vision in sizes.VISION.items():
    size = 2 * vision.patch
    cfg = config.Config(
      "fast",
      config.Fast(vision, config.Text(config.Stack(64, 1, 4, 64)), embed=16),
      data=config.Data(image_size=size),
    )
    shapes = jax.eval_shape(tasks.make(cfg, 64).init, jax.random.key(0))
    tower = shapes["fast"]["vision"]
    assert tower["position"].shape == (2, 2, vision.stack.width), name
