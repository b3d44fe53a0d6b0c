"""Whole trainings in processes of their own, as a user starts them."""

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Set by tests/conftest.py to compile faster; users set none of them.
_TESTS_ONLY = (
  "XLA_FLAGS",
  "JAX_DISABLE_MOST_OPTIMIZATIONS",
  "JAX_COMPILATION_CACHE_DIR",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
  "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES",
)


def command(
  stage: str,
  workdir: pathlib.Path,
  *arguments: str,
  processes: int = 1,
  devices: int = 1,
  local: tuple[str, ...] = (),
) -> list[str]:
  """A training under the supervisor that also records what it saw."""
  return [
    *(sys.executable, "-m", "launch.local", f"--processes={processes}"),
    *(f"--devices={devices}", *local, "--", "tests.support.recorded"),
    *(f"--config=tests/support/recipe.py:{stage}", f"--workdir={workdir}"),
    f"--config.data.dir={workdir.parent / 'data'}",
    *arguments,
  ]


def environment(record: pathlib.Path) -> dict[str, str]:
  env = {k: v for k, v in os.environ.items() if k not in _TESTS_ONLY}
  return env | {
    "RECORD": str(record),
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
  }


def train(
  stage: str, workdir: pathlib.Path, *arguments: str, **how: Any
) -> str:
  """Runs it to its end; returns what it said. Records lie in workdir/record."""
  done = subprocess.run(
    command(stage, workdir, *arguments, **how),
    env=environment(workdir / "record"),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stdout[-3000:]
  return done.stdout


def losses(folder: pathlib.Path) -> dict[int, float]:
  """Step to loss, of a stage's metrics.jsonl, which may grow meanwhile."""
  text = (folder / "metrics.jsonl").read_text()
  whole = text[: text.rfind("\n") + 1]  # a line that is being written is none
  lines = map(json.loads, whole.splitlines())
  return {x["step"]: x["loss"] for x in lines if x["split"] == "train"}


def seen(record: pathlib.Path) -> dict[int, Mapping[str, list[int]]]:
  """Step to the ids of its global batch, put together from all processes.

  A step that a restarted run made again must have been the same: that is
  asserted here.
  """
  parts: dict[tuple[int, int, str], list[int]] = {}
  for path in sorted(record.glob("*.jsonl")):
    for line in path.read_text().splitlines():
      if not line.endswith("}"):  # a kill cut it short
        continue
      made = json.loads(line)
      step, rows = made.pop("step"), made.pop("rows")
      size = sum(stop - start for start, stop in rows)
      for name, ids in made.items():
        each, at = len(ids) / size, 0.0
        for start, stop in rows:
          run = ids[round(at) : round(at + each * (stop - start))]
          at += each * (stop - start)
          assert parts.setdefault((step, start, name), run) == run
  whole: dict[int, dict[str, list[int]]] = {}
  for (step, _, name), ids in sorted(parts.items()):
    whole.setdefault(step, {}).setdefault(name, []).extend(ids)
  return whole


def parameters(folder: pathlib.Path, step: int) -> dict[str, np.ndarray]:
  """Every array of a checkpoint, read without the framework's own code."""
  import tensorstore

  found = {}
  for item in sorted((folder / "checkpoints" / str(step)).iterdir()):
    if not (item / "manifest.ocdbt").exists():
      continue
    base = f"file://{item}/"
    kv = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    for key in kv.list().result():
      name = re.fullmatch(r"(.*)/(?:\.zarray|zarr\.json)", key.decode())
      if name:
        spec = {
          "driver": "zarr3" if key.endswith(b"json") else "zarr",
          "kvstore": {"driver": "ocdbt", "base": base, "path": name[1] + "/"},
        }
        array = tensorstore.open(spec).result().read().result()
        found[f"{item.name}/{name[1]}"] = np.asarray(array)
  assert found, f"no arrays in {folder}, step {step}"
  return found
