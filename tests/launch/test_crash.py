"""Ten times kill -9, and nothing of the run shows it.

`make crash-test` runs this: minutes, since every life starts anew. A training
of two processes under the supervisor is killed while its data are made, while
it starts, at random steps, and while a checkpoint is half written.
"""

import contextlib
import pathlib
import random
import subprocess
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from tests.support import subprocesses

pytestmark = [pytest.mark.own, pytest.mark.bitwise]

STEPS, SAVE = 360, 12
SEED = 0
ARGUMENTS = (
  "--config.optim.name=adamw",
  "--config.optim.learning_rate=2e-3",
  "--config.train.log_every=1",
  f"--config.train.steps={STEPS}",
  f"--config.train.save_every={SAVE}",
)
HOW = {"processes": 2, "devices": 1, "local": ("--restarts=20", "--grace=5")}
PATIENCE = 300  # seconds that a moment may let one wait


class Victim:
  """A supervised training, and how to kill it at a moment."""

  def __init__(self, workdir: pathlib.Path):
    self.workdir = workdir
    self.log = (workdir.parent / "said.txt").open("w")
    self.process = subprocess.Popen(
      subprocesses.command("fast", workdir, *ARGUMENTS, **HOW),
      env=subprocesses.environment(workdir / "record"),
      cwd=subprocesses.ROOT,
      stdout=self.log,
      stderr=subprocess.STDOUT,
    )
    self.supervisor = psutil.Process(self.process.pid)

  def workers(self) -> list[psutil.Process]:
    return [
      child
      for child in self.supervisor.children()
      if child.status() != psutil.STATUS_ZOMBIE
    ]

  def wait(self, moment: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not (moment() and self.workers()):
      assert self.process.poll() is None, "it ended first: raise STEPS"
      assert time.monotonic() < until, "the moment never came"
      time.sleep(0.0005)

  def kill(self, moment: Callable[[], object], all_of_them: bool) -> None:
    """Kills at the moment, which is one still when nothing moves any more."""
    while True:
      self.wait(moment)
      frozen = [self.supervisor, *self.workers()]
      for process in frozen:
        process.suspend()
      if moment():
        break
      for process in frozen:
        process.resume()
    workers = frozen[1:]
    for worker in workers if all_of_them else [random.choice(workers)]:
      worker.kill()
    assert moment()
    for process in frozen:
      with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive  # the supervisor ended those who had lost a peer

  def end(self) -> None:
    if self.process.poll() is None:
      for process in [self.supervisor, *self.supervisor.children()]:
        process.kill()
      self.process.wait()
    self.log.close()

  def step(self) -> int:
    path = self.workdir / "fast" / "metrics.jsonl"
    return (
      max(subprocesses.losses(path.parent), default=0) if path.exists() else 0
    )

  def half_written(self) -> list[int]:
    """Steps whose checkpoint has begun and is not committed."""
    folder = self.workdir / "fast" / "checkpoints"
    names = [path.name for path in folder.glob("*orbax-checkpoint-tmp*")]
    begun = {int(name.split(".")[0]) for name in names}
    return sorted(s for s in begun if not (folder / str(s)).exists())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
  """The workdir of a run that nobody disturbed."""
  workdir = tmp_path_factory.mktemp("whole") / "W"
  subprocesses.train("fast", workdir, *ARGUMENTS, **HOW)
  return workdir


def assert_equal_runs(ours: pathlib.Path, theirs: pathlib.Path) -> None:
  """Losses, examples and every array of the last checkpoint, bit for bit."""
  want = subprocesses.losses(theirs / "fast")
  assert list(want) == list(range(1, STEPS + 1))
  assert subprocesses.losses(ours / "fast") == want
  seen, should = (subprocesses.seen(w / "record") for w in (ours, theirs))
  assert {s: seen[s] for s in want} == {s: should[s] for s in want}
  arrays = subprocesses.parameters(ours / "fast", STEPS)
  for name, array in subprocesses.parameters(theirs / "fast", STEPS).items():
    np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_told_to_stop_all_save_and_go_on(whole, tmp_path):
  """SIGTERM to one of them, as a machine gets that is taken away."""
  victim = Victim(tmp_path / "W")
  try:
    victim.wait(lambda: victim.step() > STEPS // 3)
    random.choice(victim.workers()).terminate()
    assert victim.process.wait(timeout=PATIENCE) == 0
  finally:
    victim.end()
  said = (tmp_path / "said.txt").read_text()
  assert "told to stop: step" in said
  assert said.count("starting 2 processes again") == 1
  assert "crashes)" not in said
  assert_equal_runs(victim.workdir, whole)


def test_ten_kills_change_nothing(whole, tmp_path):
  random.seed(SEED)
  victim = Victim(tmp_path / "W")
  data = victim.workdir.parent / "data"
  killed = []

  def kill(what: str, moment: Callable[[], object], all_of_them: bool = False):
    victim.kill(moment, all_of_them)
    killed.append(f"{what}, step {victim.step()}")
    print(killed[-1], flush=True)

  try:
    kill("preparing data", lambda: [*data.glob("**/*incomplete*")], True)
    for part in range(9):
      least = (part + 1) * STEPS // 12
      if part % 3 == 0:  # as it starts: its step is known, it trains not yet
        seconds = time.monotonic() + random.uniform(1, 8)
        kill("starting", lambda at=seconds: time.monotonic() > at)
      elif part % 3 == 1:
        step = least + random.randrange(STEPS // 20)
        kill("training", lambda at=step: victim.step() >= at)
      else:
        kill(
          "half a checkpoint",
          lambda at=least: [s for s in victim.half_written() if s > at],
          all_of_them=True,
        )
    assert victim.process.wait(timeout=PATIENCE) == 0
  finally:
    victim.end()

  assert len(killed) == 10
  assert sum("half" in what for what in killed) >= 3
  assert_equal_runs(victim.workdir, whole)
