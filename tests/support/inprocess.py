"""Runs programs inside the test's process, as `python -m launch.X` would."""

import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
import runpy
import shutil
import sys
from typing import NamedTuple
from unittest import mock

import jax
from absl import flags

CONFIG = "tests/support/recipe.py"
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Done(NamedTuple):
  code: int
  out: str
  err: str


def launch(name: str, *arguments: str) -> Done:
  """Exit code and output; what ends in a traceback is raised."""
  before, argv = set(flags.FLAGS), sys.argv
  out, err = io.StringIO(), io.StringIO()
  sys.argv = [name, *map(str, arguments)]
  sys.modules.pop(f"launch.{name}", None)  # a test may have imported it
  code = 0
  try:
    with (
      contextlib.chdir(ROOT),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
      # Of the eight devices one: programs compile in a third of the time.
      mock.patch.object(jax, "devices", return_value=jax.devices()[:1]),
    ):
      runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)
  except SystemExit as left:
    code = int(left.code or 0)
  finally:
    sys.argv = argv
    _forget(set(flags.FLAGS) - before)
  return Done(code, out.getvalue(), err.getvalue())


def _forget(names: set[str]) -> None:
  """Flags of a program, so that the next may define them; not a library's."""
  owners = flags.FLAGS.flags_by_module_dict()
  ours = {f.name for m, fs in owners.items() if "launch" in m for f in fs}
  for name in names:
    if name in ours or name.startswith("config"):
      delattr(flags.FLAGS, name)


def train(workdir: pathlib.Path, stage: str, *arguments: str) -> Done:
  return launch(
    "train",
    f"--config={CONFIG}:{stage}",
    f"--config.data.dir={workdir.parent / 'data'}",
    f"--workdir={workdir}",
    *arguments,
  )


def trained(tmp_path_factory) -> pathlib.Path:
  """A workdir with all stages and a gallery, made once for all processes."""
  shared = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:  # workers have folders of their own
    shared = shared.parent
  workdir = shared / "programs" / "W"
  workdir.parent.mkdir(exist_ok=True)
  with open(workdir.parent / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if (workdir.parent / "made").exists():
      return workdir
    for done in (
      *(train(workdir, stage) for stage in ("fast", "slow", "distill")),
      launch(
        "encode",
        f"--run={workdir / 'distill'}",
        f"--slow={workdir / 'slow'}",
      ),
      launch(
        "export_index",
        f"--gallery={workdir / 'gallery' / 'test'}",
        f"--run={workdir / 'distill'}",
      ),
    ):
      assert done.code == 0, done.err
      with open(workdir.parent / "said.txt", "a") as said:
        said.write(done.out)
    (workdir.parent / "made").touch()
  return workdir


def copy(workdir: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
  """A workdir of one's own, to damage; the data stay where they are."""
  return pathlib.Path(shutil.copytree(workdir, to / "W"))


def digest(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of every file: equal where nothing was touched."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }
