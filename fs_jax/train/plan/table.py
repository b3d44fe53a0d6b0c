"""Plans of many stages: made, kept, and shown as a table.

A row is kept beside its config's hash, the versions of the compiler and a
digest of the programs that it compiled: only what changed is compiled again,
and code that moved or was reworded changes nothing.
"""

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any

import jax
import rich.table
from etils import epath

from fs_jax import config
from fs_jax.machine import (
  compile_cache,
  console,
  files,
  hardware,
  manifest,
  provenance,
)
from fs_jax.train.plan import advice, plan, render

ROW = "plan"  # kind of a record
_EACH = 8 * hardware.GIB  # memory that compiling an L/14 wants, and some more


def plan_one(name: str, cfg: config.Config, out: str) -> plan.Plan:
  """Plans a stage and prints it; where it does not fit, also what would.

  Args:
    name: the plan's name: a config, and how it was changed.
    cfg: the stage's config.
    out: a JSON file, or the folder of it.
  """
  console.say(f"compiling for {cfg.mesh.topology}: a minute or a few")
  planned = plan.plan(name, cfg)
  print(render.summarize(planned), flush=True)
  advised = None
  if not planned.fits:
    tried = advice.what_fits(name, cfg, planned.needed)
    if tried and tried[-1][1].fits:
      change, fitting = tried[-1]
      print(f"this fits:\n  {change.flags}\n{render.summarize(fitting)}")
      advised = {"flags": change.flags} | fitting.to_json()
    else:
      print(
        "nothing that was tried fits: take a larger topology or a smaller model"
      )
  path = epath.Path(out)
  if path.suffix != ".json":
    path = path / file_name(f"{name} {render.place(planned)}")
  _write(path, planned.to_json() | {"advice": advised})
  print(f"written to {path}")
  return planned


def plan_all(
  recipes: Mapping[str, config.Config],
  folder: str,
  readme: str,
  jobs: int = 1,
) -> list[plan.Plan]:
  """Plans all of `recipes`, those that did not change from their rows.

  Prints a table, and writes it between the markers of `readme`.

  Args:
    recipes: configs by name.
    folder: the rows' folder.
    readme: Markdown with the markers.
    jobs: how many are compiled at once.
  """
  began = time.perf_counter()
  path = {n: epath.Path(folder) / "rows" / file_name(n) for n in recipes}
  old = {name: read_row(path[name], cfg) for name, cfg in recipes.items()}
  rows = {name: planned for name, planned in old.items() if planned is not None}
  missing: dict[str, list[str]] = {}  # by step: flickr30k's Fast is coco's
  for name in recipes:
    if name not in rows:
      missing.setdefault(key(recipes[name]), []).append(name)
  shared = {names[0]: names for names in missing.values()}
  steps = {name: recipes[name] for name in shared}
  console.say(
    f"{len(rows)} of {len(recipes)} did not change; compiling {len(steps)} "
    f"steps of {len(recipes) - len(rows)}, {min(jobs, len(steps))} at once"
  )
  for first, planned in _compile(steps, jobs):
    for name in shared[first]:
      rows[name] = _rename(planned, name, recipes[name])
      write_row(path[name], rows[name], recipes[name])
    seconds = "does not fit"
    if planned.times:
      seconds = f"{planned.times.step:.3f} s a step"
    minutes = (time.perf_counter() - began) / 60
    console.say(
      f"{len(rows)}/{len(recipes)}  {first}: {seconds}  ({minutes:.1f} min)"
    )
  plans = [rows[name] for name in recipes]
  _show(readme, plans)
  return plans


def _compile(
  recipes: Mapping[str, config.Config], jobs: int
) -> Iterator[tuple[str, plan.Plan]]:
  """Plans as they are done, each of several at once by its own process."""
  if jobs == 1:
    for name, cfg in recipes.items():
      yield name, _plan_and_clear(name, cfg)
    return
  pool = futures.ProcessPoolExecutor(
    jobs,
    multiprocessing.get_context("spawn"),
    initializer=stay_on_cpu,
  )
  try:
    names = {
      pool.submit(_plan_and_clear, name, cfg): name
      for name, cfg in recipes.items()
    }
    for done in futures.as_completed(names):
      yield names[done], done.result()
  finally:
    pool.shutdown(cancel_futures=True)


def _plan_and_clear(name: str, cfg: config.Config) -> plan.Plan:
  """Plans a config, then clears JAX's caches: no step is compiled twice."""
  try:
    return plan.plan(name, cfg)
  finally:
    jax.clear_caches()


def stay_on_cpu() -> None:
  """Keeps JAX from looking for the TPU whose compiler it has."""
  jax.config.update("jax_platforms", "cpu")


def count_jobs() -> int:
  """The compilations that this machine's cores and memory hold at once.

  One keeps two cores busy by itself; two on two cores take longer than one
  after the other.
  """
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return max(1, min(hardware.count_cores() // 2, memory // _EACH))


def _show(readme: str, plans: list[plan.Plan]) -> None:
  """Writes the table of `plans` between the markers of `readme`; prints it."""
  rows = [render.row(planned) for planned in plans]
  path = epath.Path(readme)
  text = render.rewrite(path.read_text(), render.table(rows))
  files.write_text(path, text)
  printed = rich.table.Table(*render.COLUMNS)
  for row in rows:
    printed.add_row(*row)
  console.wide().print(printed)


def write_row(path: epath.Path, planned: plan.Plan, cfg: config.Config) -> None:
  """Writes a plan beside what it was made from."""
  values = {"plan": planned.to_json(), "source": _source(_SOURCE)}
  manifest.write_record(path, ROW, _made_from(cfg), values)


def read_row(path: epath.Path, cfg: config.Config) -> plan.Plan | None:
  """The plan of this config and these versions, if it was kept and holds.

  It holds where the source did not change, or where it still makes the same
  programs: they are lowered, which takes seconds, and compared.
  """
  values = provenance.find_record(path, ROW, _made_from(cfg))
  if values is None:
    return None
  try:
    planned = plan.Plan.from_json(values["plan"])
  except (KeyError, TypeError):  # spoilt by hand
    return None
  if values.get("source") != _source(_SOURCE):
    if planned.program != plan.fingerprint(cfg):
      return None
    write_row(path, planned, cfg)
  return _rename(planned, planned.config, cfg)


def _made_from(cfg: config.Config) -> provenance.Contract:
  return {"step": {"key": key(cfg), "reader": _source(_READER)}}


def _rename(planned: plan.Plan, name: str, cfg: config.Config) -> plan.Plan:
  """The plan of a config with the same step, as that of `cfg`."""
  return dataclasses.replace(planned, config=name, steps=cfg.train.steps)


def _write(path: epath.Path, values: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_text(path, json.dumps(values, indent=2) + "\n")


def file_name(name: str) -> str:
  """ "configs/coco.py:fast@v5e:2x4" -> "coco-fast-v5e-2x4.json"."""
  name = name.removeprefix("configs/").replace(".py", "")
  return re.sub(r"[^\w.]+", "-", name) + ".json"


def key(cfg: config.Config) -> str:
  """Digest of all that decides the compiled step: its config and compiler.

  The data set and the number of steps change no step.
  """
  values = dataclasses.asdict(cfg)
  del values["name"], values["data"]["dataset"], values["train"]["steps"]
  if cfg.stage != "distill":
    del values["distill"]
  digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
  digest.update(json.dumps(compile_cache.versions(), sort_keys=True).encode())
  return digest.hexdigest()[:16]


@functools.cache
def _source(names: tuple[str, ...]) -> str:
  """SHA-256 of the code that runs; cached, so that later edits do not count."""
  digest = hashlib.sha256()
  package = pathlib.Path(__file__).parents[2]
  for name in names:
    path = package / name
    for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
      digest.update(file.read_bytes())
  return digest.hexdigest()


# Files and folders of fs_jax that read a compiled program and reckon with it...
_READER = (
  "machine/hardware.py",
  "models/flops.py",
  "train/plan/hlo.py",
  "train/plan/plan.py",
)
# ... and those that decide which program it is.
_SOURCE = (
  "types.py",
  "config.py",
  "trees.py",
  "models",
  "machine/sharding.py",
  "train/losses.py",
  "train/tiles.py",
  "train/ring.py",
  "train/optim.py",
  "train/gradients.py",
  "train/tasks.py",
  "train/step.py",
  "train/pair_scores.py",
  "search/fusion.py",
)
