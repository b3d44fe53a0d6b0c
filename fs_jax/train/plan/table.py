"""Plans in words: one with what would make it fit, all of them in a table.

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
from fs_jax.train.plan import advice, plan

ROW = "plan"  # kind of a record
BEGIN, END = "<!-- plan:begin -->", "<!-- plan:end -->"
_gib = console.format_gib
_EACH = 8 * hardware.GIB  # memory that compiling an L/14 wants, and some more


def plan_one(name: str, cfg: config.Config, out: str) -> plan.Plan:
  """Plans a stage and says so; where it does not fit, also what would.

  Args:
    name: what the plan is called: a config, and how it was changed.
    cfg: of the stage.
    out: JSON file, or the folder of it.
  """
  console.say(f"compiling for {cfg.mesh.topology}: a minute or a few")
  made = plan.plan(name, cfg)
  print(summary(made), flush=True)
  found = None
  if not made.fits:
    tried = advice.what_fits(name, cfg, made.needed)
    if tried and tried[-1][1].fits:
      change, fitting = tried[-1]
      print(f"this fits:\n  {change.flags}\n{summary(fitting)}")
      found = {"flags": change.flags} | fitting.to_json()
    else:
      print(
        "nothing that was tried fits: take a larger topology or a smaller model"
      )
  path = epath.Path(out)
  if path.suffix != ".json":
    path = path / file_name(f"{name} {place(made)}")
  _write(path, made.to_json() | {"advice": found})
  print(f"written to {path}")
  return made


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
    folder: where rows are kept.
    readme: Markdown with the markers.
    jobs: how many are compiled at once.
  """
  began = time.perf_counter()
  path = {n: epath.Path(folder) / "rows" / file_name(n) for n in recipes}
  old = {name: kept(path[name], cfg) for name, cfg in recipes.items()}
  rows = {name: made for name, made in old.items() if made is not None}
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
  for first, made in _compiled(steps, jobs):
    for name in shared[first]:
      rows[name] = _named(made, name, recipes[name])
      keep(path[name], rows[name], recipes[name])
    said = f"{made.times.step:.3f} s a step" if made.times else "does not fit"
    minutes = (time.perf_counter() - began) / 60
    console.say(
      f"{len(rows)}/{len(recipes)}  {first}: {said}  ({minutes:.1f} min)"
    )
  made_of_all = [rows[name] for name in recipes]
  _show(readme, made_of_all)
  shown = rich.table.Table(*COLUMNS)
  for made in made_of_all:
    shown.add_row(*row(made))
  console.wide().print(shown)
  return made_of_all


def _compiled(
  recipes: Mapping[str, config.Config], jobs: int
) -> Iterator[tuple[str, plan.Plan]]:
  """Plans as they are done, each of several at once by its own process."""
  if jobs == 1:
    for name, cfg in recipes.items():
      yield name, _forgotten(name, cfg)
    return
  pool = futures.ProcessPoolExecutor(
    jobs,
    multiprocessing.get_context("spawn"),
    initializer=on_cpu,
  )
  try:
    asked = {pool.submit(_forgotten, n, cfg): n for n, cfg in recipes.items()}
    for done in futures.as_completed(asked):
      yield asked[done], done.result()
  finally:
    pool.shutdown(cancel_futures=True)


def _forgotten(name: str, cfg: config.Config) -> plan.Plan:
  """A plan, of whose step no cache keeps anything: nobody compiles it again."""
  try:
    return plan.plan(name, cfg)
  finally:
    jax.clear_caches()


def on_cpu() -> None:
  """Keeps JAX from looking for the TPU whose compiler it has."""
  jax.config.update("jax_platforms", "cpu")


def at_once() -> int:
  """Compilations that the cores and the memory of this machine hold.

  One keeps two cores busy by itself; two on two cores take longer than one
  after the other.
  """
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return max(1, min(len(os.sched_getaffinity(0)) // 2, memory // _EACH))


def _show(readme: str, rows: list[plan.Plan]) -> None:
  path = epath.Path(readme)
  text = rewrite(path.read_text(), table([row(made) for made in rows]))
  files.write_text(path, text)


def keep(path: epath.Path, made: plan.Plan, cfg: config.Config) -> None:
  """Writes a row beside what it was planned from."""
  values = {"plan": made.to_json(), "source": _source(_SOURCE)}
  manifest.write_record(path, ROW, _made_from(cfg), values)


def kept(path: epath.Path, cfg: config.Config) -> plan.Plan | None:
  """The plan that was made of this config and these versions, if it holds.

  It does where the source did not change, or where it still makes the same
  programs: they are lowered, which takes seconds, and compared.
  """
  values = provenance.record(path, ROW, _made_from(cfg))
  if values is None:
    return None
  try:
    made = plan.Plan.from_json(values["plan"])
  except (KeyError, TypeError):  # spoilt by hand
    return None
  if values.get("source") != _source(_SOURCE):
    if made.program != plan.fingerprint(cfg):
      return None
    keep(path, made, cfg)
  return _named(made, made.config, cfg)


def _made_from(cfg: config.Config) -> provenance.Contract:
  return {"step": {"key": key(cfg), "reader": _source(_READER)}}


def _named(made: plan.Plan, name: str, cfg: config.Config) -> plan.Plan:
  """`made` of a config with the same step, as that of `cfg`."""
  return dataclasses.replace(made, config=name, steps=cfg.train.steps)


def _write(path: epath.Path, values: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_text(path, json.dumps(values, indent=2) + "\n")


def file_name(name: str) -> str:
  """ "configs/coco.py:fast@v5e:2x4" -> "coco-fast-v5e-2x4.json"."""
  name = name.removeprefix("configs/").replace(".py", "")
  return re.sub(r"[^\w.]+", "-", name) + ".json"


def key(cfg: config.Config) -> str:
  """Changes when the compiled step may: its config, and its compiler.

  Whose pictures it sees and how many steps there are changes no step.
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
  """SHA-256 of code as it runs: edited later, it is not what planned."""
  digest = hashlib.sha256()
  package = pathlib.Path(__file__).parents[2]
  for name in names:
    path = package / name
    for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
      digest.update(file.read_bytes())
  return digest.hexdigest()


# Below fs_jax: what reads a compiled program and reckons with it...
_READER = (
  *("machine/hardware.py", "models/flops.py"),
  *("train/plan/hlo.py", "train/plan/plan.py"),
)
# ... and what decides which program it is.
_SOURCE = (
  *("types.py", "config.py", "trees.py", "models", "machine/sharding.py"),
  *("train/losses.py", "train/ring.py", "train/optim.py"),
  *("train/gradients.py", "train/tasks.py", "train/step.py"),
  *("train/pair_scores.py", "search/fusion.py"),
)


def summary(made: plan.Plan) -> str:
  """A plan in lines."""
  m, t = made.memory, made.times
  chip = hardware.tpu(made.topology)
  mesh = " x ".join(f"{axis} {n}" for axis, n in made.mesh.items() if n > 1)
  parts = f" in {made.accumulate} parts" if made.accumulate > 1 else ""
  twice = ""
  if made.hardware_flops > made.model_flops:
    all_flops = made.hardware_flops / 1e12
    twice = f", {all_flops:.1f} T with what is computed twice to save memory"
  lines = [
    f"{made.config} on {place(made)}: {made.devices} chips as {mesh or 'one'}",
    f"  parameters     {made.parameters / 1e6:.1f} M trained",
    f"  batch          {made.batch_size}{parts}",
    f"  FLOPs a step   {made.model_flops / 1e12:.1f} T{twice}",
  ]
  if t is None:
    over = m.needed - m.available
    return "\n".join(
      [
        *lines,
        f"  memory         DOES NOT FIT: needs {_gib(m.needed)} of "
        f"{_gib(m.available)} GiB a chip, {_gib(over)} too many",
      ]
    )
  sent = ", ".join(
    f"{kind} {_bytes(n)}" for kind, n in made.collectives.items()
  )
  lines += [
    f"  memory         fits: {_gib(m.needed)} of "
    f"{_gib(m.available)} GiB a chip at its peak, "
    f"{_gib(m.arguments)} of them state and batch",
    *_validating(made),
    f"  sent a chip    {sent or 'nothing'}",
    "  busy, seconds  "
    + ", ".join(f"{k} {v:.4f}" for k, v in t._asdict().items() if v)
    + " (of the core, as its compiler estimates)" * (t.cycles > 0),
    f"  step           {t.step:.4f} s if all of that overlaps, bound by "
    f"{t.bound}; {_serial(t):.4f} s if nothing does",
    f"  MFU            {made.mfu:.0%} of {chip.flops / 1e12:.0f} TFLOP/s "
    "a chip",
    f"  examples/s     {made.examples_per_second:,.0f}",
    f"  whole run      {made.steps:,} steps: {_duration(made)}, "
    f"{made.device_hours:,.1f} chip-hours",
    f"  compiled in    {made.compile_seconds} s",
  ]
  return "\n".join(lines)


def _validating(made: plan.Plan) -> list[str]:
  """A line on what a validation needs, the state beside it."""
  v = made.validation
  if v is None:
    return []
  off = "" if made.validates else "; train.eval_every=0 leaves it out"
  fits = "fits:" if v.fits else "DOES NOT FIT: needs"
  return [
    f"  validation     {fits} {_gib(v.needed)} of {_gib(v.available)} GiB a "
    f"chip at its peak{off}"
  ]


def _serial(t: plan.Times) -> float:
  """The core, which reads memory as it computes, then what is sent."""
  return max(t.compute, t.hbm, t.cycles) + t.interconnect + t.network


def _duration(made: plan.Plan) -> str:
  days = made.days or 0.0
  return f"{days:.1f} days" if days >= 2 else f"{24 * days:.1f} hours"


def place(made: plan.Plan) -> str:
  return f"{made.slices} x {made.topology}" * (made.slices > 1) or made.topology


COLUMNS = (
  *("config", "topology", "mesh", "batch", "M params", "GiB/chip of"),
  "validating",
  *("TFLOP/chip", "MB sent/chip", "step s", "bound by", "MFU"),
  *("examples/s", "days", "chip-hours"),
)


def row(made: plan.Plan) -> tuple[str, ...]:
  m, t = made.memory, made.times
  mesh = " ".join(f"{axis}={n}" for axis, n in made.mesh.items() if n > 1)
  used = f"{_gib(m.needed)} / {_gib(m.available)}"
  each = made.hardware_flops / made.devices / 1e12
  values = (
    made.config.removeprefix("configs/"),
    place(made),
    mesh or "-",
    f"{made.batch_size}" + f" / {made.accumulate}" * (made.accumulate > 1),
    f"{made.parameters / 1e6:.0f}",
    used if m.fits else f"{used}: does not fit",
    _validated(made),
    f"{each:.2f}",
  )
  if t is None:
    return (*values, *["-"] * (len(COLUMNS) - len(values)))
  return (
    *values,
    f"{sum(made.collectives.values()) / 1e6:.0f}",
    f"{t.step:.3f}",
    t.bound,
    f"{made.mfu:.0%}",
    f"{made.examples_per_second:,.0f}",
    f"{made.days:.2f}",
    f"{made.device_hours:,.0f}",
  )


def _validated(made: plan.Plan) -> str:
  v = made.validation
  if v is None:
    return "-"
  return _gib(v.needed) + ": does not fit" * (not v.fits)


def table(rows: list[tuple[str, ...]]) -> str:
  """Markdown."""
  lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rewrite(text: str, made: str) -> str:
  """`text` with what lies between its markers replaced.

  Raises:
    ValueError: the markers are not there.
  """
  begin, end = text.find(BEGIN), text.find(END)
  if begin < 0 or end < begin:
    raise ValueError(
      f"launch/README.md: must hold {BEGIN} and {END}, in this order; got a "
      "text without. put them back"
    )
  return f"{text[: begin + len(BEGIN)]}\n{made}\n{text[end:]}"


def _bytes(n: float) -> str:
  return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"
