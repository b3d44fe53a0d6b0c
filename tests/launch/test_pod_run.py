"""A pod in miniature: several processes train what one would.

`make pod-test` runs these; they take minutes, as every run starts processes of
its own. Two of four devices each, one of eight, of four, and one alone.
"""

import pathlib
import shutil
import sys

import numpy as np
import pytest

from fs_jax.machine.pods import local
from fs_jax.runs import journal
from tests.support import subprocesses

pytestmark = pytest.mark.own

STEPS = 20
STAGES = ("fast", "slow", "distill")
# Of a validation sample of 16, and of 4 that Slow judges.
ONE_QUERY = {"fast": 1 / 16, "slow": 1 / 4, "distill": 1 / 16}
# Processes, devices of each, and the mesh: all three axes where they fit.
ONE = (1, 1, ())
EIGHT = (1, 8, ("--config.mesh.fsdp=2", "--config.mesh.model=2"))
LAYOUTS = {
  "2x4": (2, 4, EIGHT[2]),
  "1x8": EIGHT,
  "1x4": (1, 4, EIGHT[2]),
  "1x1": ONE,
}
COMMON = (
  "--config.fast.chunk=8",  # the ring
  "--config.train.log_every=1",
  "--config.train.eval_every=10",
  "--config.optim.ema=0.9",
  "--config.optim.name=adamw",  # muon's products are slow on eight devices
  "--config.optim.learning_rate=2e-3",
)
OF_STAGE = {"distill": ("--config.distill.teacher=online",)}


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> pathlib.Path:
  """Where all layouts begin: a Fast and a Slow, trained on one device."""
  workdir = tmp_path_factory.mktemp("pod") / "donors"
  for stage in ("fast", "slow"):
    subprocesses.train(stage, workdir)
  return workdir


def begin(donors: pathlib.Path, stage: str, name: str) -> pathlib.Path:
  """A workdir with the stages before this one."""
  workdir = donors.parent / f"{stage}-{name}"
  for earlier in STAGES[: STAGES.index(stage)]:
    shutil.copytree(donors / earlier, workdir / earlier)
  return workdir


def train(workdir, stage, layout, *arguments):
  processes, devices, mesh = layout
  subprocesses.train(
    stage,
    workdir,
    *(*COMMON, *OF_STAGE.get(stage, ()), *mesh, *arguments),
    processes=processes,
    devices=devices,
  )
  return subprocesses.losses(workdir / stage), subprocesses.seen(
    workdir / "record"
  )


def validations(folder: pathlib.Path) -> dict[int, tuple[float, float]]:
  """Step to R@1 and R@5."""
  lines = [x for x in journal.read(folder) if x["split"] == "validation"]
  return {line["step"]: (line["R@1"], line["R@5"]) for line in lines}


def difference(got: dict[int, float], want: dict[int, float]) -> float:
  assert got.keys() == want.keys()
  return max(abs(got[step] / want[step] - 1) for step in want)


@pytest.mark.parametrize("stage", STAGES)
def test_processes_and_devices_change_nothing(donors, stage):
  found = {}
  for name, layout in LAYOUTS.items():
    workdir = begin(donors, stage, name)
    steps = f"--config.train.steps={STEPS}"
    found[name] = train(workdir, stage, layout, steps)
  recalls = {
    name: validations(donors.parent / f"{stage}-{name}" / stage)
    for name in found
  }
  assert list(recalls["1x1"]) == [STEPS // 2, STEPS]
  for name, recall in recalls.items():
    assert recall.keys() == recalls["1x1"].keys()
    for step, values in recall.items():  # one near tie may fall otherwise
      want = recalls["1x1"][step]
      assert np.abs(np.subtract(values, want)).max() <= ONE_QUERY[stage], name
  want, examples = found.pop("1x1")
  assert list(want) == list(range(1, STEPS + 1))
  assert len(set(want.values())) > STEPS // 2  # it moves
  for name, (losses, ids) in found.items():
    apart = difference(losses, want)
    print(f"{stage} on {name}: {apart:.1e} from one device")
    assert apart < 1e-5
    assert {s: ids[s] for s in want} == {s: examples[s] for s in want}


@pytest.mark.bitwise
@pytest.mark.parametrize("stage", ["fast", "distill"])
def test_a_run_goes_on_elsewhere(donors, stage):
  """Saved on eight devices, it goes on on eight, four, two processes, one."""
  whole = 2 * STEPS
  often = ("--config.train.keep=3", f"--config.train.save_every={STEPS}")
  often += (f"--config.train.steps={whole}",)
  first = begin(donors, stage, "saved")
  train(first, stage, EIGHT, *often)
  found = {}
  for name in ("1x8", "1x4", "2x2", "1x1"):
    workdir = donors.parent / f"{stage}-again-{name}"
    shutil.copytree(first, workdir)
    shutil.rmtree(workdir / stage / "checkpoints" / str(whole))
    shutil.rmtree(workdir / "record")
    for after in ("DONE", "fit.json"):  # of the end that it has yet to reach
      (workdir / stage / after).unlink(missing_ok=True)
    layout = LAYOUTS.get(name, (2, 2, EIGHT[2]))
    found[name] = train(workdir, stage, layout, *often)
  control, examples = found.pop("1x8")
  assert min(examples) == STEPS + 1  # it did go on
  before = subprocesses.losses(first / stage)
  assert control == before  # bit for bit on the mesh it was saved on
  for name, (losses, ids) in found.items():
    apart = difference(losses, control)
    print(f"{stage} goes on on {name}: {apart:.1e} from eight devices")
    assert apart < 1e-5
    assert {s: ids[s] for s in ids if s <= whole} == {
      s: examples[s] for s in examples if s <= whole
    }
  arrays = subprocesses.parameters(
    donors.parent / f"{stage}-again-1x8" / stage, whole
  )
  for name, array in subprocesses.parameters(first / stage, whole).items():
    np.testing.assert_array_equal(arrays[name], array, err_msg=name)


LATE = """
import time
from fs_jax.machine import processes
processes.start()
with processes.first_then_others("data"):
  if processes.is_first():
    time.sleep(40)
print("all go on", flush=True)
"""


def test_the_first_process_may_take_its_time():
  """Longer than a CPU's collectives wait: data may take hours to prepare."""
  job = local.Job([sys.executable, "-c", LATE], 2, devices=1, restarts=0)
  assert local.run(job, print) == 0
