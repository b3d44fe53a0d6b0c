"""Half an hour of training, whose memory must not grow.

`make soak` runs this; SOAK_MINUTES=2 looks sooner. Metrics are written at every
step and a validation comes every few seconds: what leaks a little each time has
thousands of times to do so. Checkpoints come every few minutes, as in a long
run: tensorstore 0.1.86 keeps some 300 bytes of each JSON that it hands to
Python, of which orbax asks for several an array and save (0.2 MiB a save of a
hundred arrays, whatever their size).
"""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest

from tests.support import subprocesses

pytestmark = pytest.mark.own

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
MOST = 0.01  # growth, from the second sixth of the time to the last
ARGUMENTS = (
  "--config.optim.ema=0.99",
  "--config.train.log_every=1",
  "--config.train.save_every=5000",
  "--config.train.eval_every=100",
  "--config.train.steps=100000000",
)


def test_memory_does_not_grow(tmp_path):
  workdir = tmp_path / "W"
  command = subprocesses.command("fast", workdir, *ARGUMENTS)
  with open(tmp_path / "said.txt", "w") as log:
    process = subprocess.Popen(
      command,
      env=subprocesses.environment(workdir / "record") | {"RECORD": ""},
      cwd=subprocesses.ROOT,
      stdout=log,
      stderr=subprocess.STDOUT,
    )
    try:
      process.wait(timeout=60 * MINUTES)
    except subprocess.TimeoutExpired:
      process.terminate()
      assert process.wait(timeout=120) == 75  # told to stop: it saved
    finally:
      process.kill()
  seconds, memory = read(workdir / "fast")
  assert len(memory) > 100, (tmp_path / "said.txt").read_text()[-2000:]
  at = (seconds - seconds[0]) / (seconds[-1] - seconds[0])
  early = np.median(memory[(at > 1 / 6) & (at < 1 / 3)])
  late = np.median(memory[at > 5 / 6])
  print(
    f"{len(memory)} steps in {(seconds[-1] - seconds[0]) / 60:.1f} min: "
    f"{1024 * early:.1f} MiB, then {1024 * late:.1f}, {late / early - 1:+.2%}"
  )
  assert late / early - 1 < MOST


def read(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Seconds and GiB of each step of a stage."""
  lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  found = [x for x in lines if x["split"] == "train"]
  return (
    np.array([x["time"] for x in found]),
    np.array([x["host_memory_gib"] for x in found]),
  )
