"""Every program on a tiny workdir, from configs to answers."""

import errno
import json
import pathlib
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from fs_jax.evaluate import results
from fs_jax.evaluate.studies import study
from fs_jax.machine import errors
from fs_jax.runs import journal, layout, stages
from fs_jax.search import fusion
from launch import cli
from tests.support import inprocess, synthetic


@pytest.fixture(scope="session")
def workdir(trained):
  return trained


def test_training_says_what_to_do_next(workdir):
  said = (workdir.parent / "said.txt").read_text()
  data = f"--config.data.dir={workdir.parent / 'data'}"
  for stage in ("slow", "distill"):
    assert (
      f"python -m launch.train --config=tests/support/recipe.py:{stage} {data} "
      f"--workdir={workdir}" in said
    )
  assert f"python -m launch.encode --run={workdir / 'distill'}" in said
  assert f"--workdir={workdir}" in said.splitlines()[-1]  # search


def test_training_leaves_every_stage_ready(workdir):
  for stage in ("fast", "slow", "distill"):
    assert stages.is_finished(workdir / stage)
    run = stages.load(workdir / stage)
    assert run.step == run.cfg.train.steps
  judge = stages.load(workdir / "slow").slow_contract
  for stage, fast in (("slow", "fast"), ("distill", "distill")):
    other = stages.load(workdir / fast).fast_contract
    fit = fusion.load(workdir / stage, {"fast": other, "slow": judge})
    assert fit.tau > 0


def board(folder):
  """{tag: {step: value}} of a stage's TensorBoard files."""
  found = {}
  for path in sorted((folder / "tb").iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):  # length, its sum, an event, its sum
      (length,) = struct.unpack_from("<Q", data, at)
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
      at += 12 + length + 4
      for value in event.summary.value:
        found.setdefault(value.tag, {})[event.step] = value.simple_value
  return found


@pytest.mark.parametrize(
  ("stage", "own"),
  [
    ("fast", {"scale", "batch_recall", "grad_norm/text", "grad_norm/vision"}),
    ("slow", {"nats_per_word", "grad_norm/encoder", "grad_norm/readers"}),
    ("distill", {"scale", "batch_recall", "distillation", "grad_norm/vision"}),
  ],
)
def test_what_training_reports(workdir, stage, own):
  """The same numbers in lines and in TensorBoard."""
  lines = [x for x in journal.read(workdir / stage) if x["split"] == "train"]
  of_all = {"loss", "learning_rate", "grad_norm"} | synthetic.CLOCKED - {"mfu"}
  assert own | of_all <= lines[0].keys()
  shown = board(workdir / stage)
  keys = lines[0].keys() - {"step", "split", "time"}
  assert {f"train/{key}" for key in keys} == shown.keys()
  for key in keys:
    want = {line["step"]: line[key] for line in lines}
    assert shown[f"train/{key}"] == pytest.approx(want, rel=1e-6)


def test_everything_again_changes_nothing(workdir, tmp_path):
  mine = inprocess.copy(workdir, tmp_path)
  (tmp_path / "data").symlink_to(workdir.parent / "data")
  before = inprocess.digest(mine)
  again = inprocess.launch(
    "encode", f"--run={mine / 'distill'}", f"--slow={mine / 'slow'}"
  )
  assert again.code == 0, again.err
  assert inprocess.digest(mine) == before


def test_search(workdir, tmp_path):
  sheet = tmp_path / "sheet.png"
  done = inprocess.launch(
    "search",
    "a big fox zorgle",
    f"--workdir={workdir}",
    "--k=3",
    "--rerank=8",
    f"--sheet={sheet}",
  )
  assert done.code == 0, done.err
  assert "ignored, not in the vocabulary: zorgle" in done.out
  for stage in ("encode", "search", "rerank"):
    assert f"{stage} " in done.out
  assert "OpenMoji" in done.out  # who drew the pictures
  assert np.asarray(Image.open(sheet)).ndim == 3


def test_search_with_fast_alone(workdir, tmp_path):
  done = inprocess.launch(
    "search", "a big fox", f"--workdir={workdir}", "--rerank=0", "--sheet="
  )
  assert done.code == 0, done.err
  assert "rerank" not in done.out and "moved" not in done.out


def test_evaluate(workdir, tmp_path, monkeypatch):
  mine = inprocess.copy(workdir, tmp_path)
  (mine / "slow" / layout.WEIGHTS).unlink()
  monkeypatch.setattr(study, "KS", (20,))
  before = inprocess.digest(mine / "gallery")
  fitted = inprocess.launch("evaluate", f"--workdir={mine}", "--fit")
  assert fitted.code == 0, fitted.err
  assert (mine / "slow" / layout.WEIGHTS).exists()
  assert "fast and distill are fitted" in fitted.out
  assert inprocess.digest(mine / "gallery") == before  # no more than that
  (mine / "slow" / layout.WEIGHTS).unlink()  # evaluating fits what is missing
  done = inprocess.launch("evaluate", f"--workdir={mine}", "--queries=8")
  assert done.code == 0, done.err
  assert (mine / "slow" / layout.WEIGHTS).exists()
  path = done.out.split("written:")[1].strip()
  made = json.loads(pathlib.Path("".join(path.split())).read_text())
  names = {row["name"] for row in made["rows"]}
  assert {"fast", "fast_distilled", "slow", "rerank@20"} <= names
  for row in made["rows"]:
    for name in ("R@1", "R@10", results.HARD):
      value, low, high = row[name]
      assert 0 <= low <= value <= high <= 100
    assert row["stages_ms"]
  assert any(p["name"] == "rerank@20 - slow" for p in made["paired"])


def test_doctor():
  done = inprocess.launch("doctor")
  assert done.code == 0, done.err
  for name in ("python", "jax", "scann", "disk here", "devices"):
    assert name in done.out


@pytest.mark.parametrize(
  "name",
  ["train", "encode", "export_index", "search", "evaluate", "doctor", "pod"],
)
def test_help_begins_with_an_example(name):
  done = inprocess.launch(name, "--help")
  assert done.code == 0
  lines = done.out.splitlines()
  assert lines[0].endswith((".", ":"))
  assert lines[2].startswith(f"  python -m launch.{name}")
  assert "exit codes:" in done.out
  assert "--alsologtostderr" not in done.out  # flags of libraries


def test_a_diverging_loss_is_3(capsys):
  def main(_):
    raise errors.NonFinite("fast: the loss must stay finite; got nan")

  assert cli.call(main, "", ["x"]) == 3
  assert capsys.readouterr().err.startswith("error: fast: the loss must")


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError, KeyError])
def test_a_bug_keeps_its_traceback(error):
  def main(_):
    raise error("not raised by this project's code")

  with pytest.raises(error):
    cli.call(main, "", ["x"])


@pytest.mark.parametrize(
  ("error", "mended"),
  [
    (OSError("runs/x: a checkpoint must be written; got ..."), True),
    (OSError(errno.ENOSPC, "No space left on device", "x"), True),
    (PermissionError(errno.EACCES, "Permission denied", "x"), True),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), True),
    (OSError(errno.ESTALE, "Stale file handle", "x"), False),
    (OSError(errno.EIO, "Input/output error", "x"), False),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset"), False),
    (TimeoutError(), False),
  ],
)
def test_what_may_pass_is_no_bad_input(error, mended):
  """A launcher starts the rest again: nothing that a user did is wrong."""

  def main(_):
    raise error

  if mended:
    assert cli.call(main, "", ["x"]) == errors.BAD_INPUT
  else:
    with pytest.raises(OSError):
      cli.call(main, "", ["x"])


def test_a_real_process_leaves_with_its_code():
  command = [sys.executable, "-m", "launch.search"]
  done = subprocess.run(
    [*command, "fox", "--workdir=nowhere"],
    cwd=inprocess.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: nowhere: must hold a trained")
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
  ("told", "code", "said"),
  [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_process_that_is_told_to_stop(told, code, said):
  program = (
    # As from a terminal: what runs in the background inherits "ignore".
    "import signal, time\nfrom launch import cli\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "def main(_):\n  print('here', flush=True)\n  time.sleep(60)\n"
    "cli.run(main, '')"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", program],
    cwd=inprocess.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.readline()
  process.send_signal(told)
  _, err = process.communicate(timeout=30)
  assert process.returncode == code
  assert said in err and "start it again" in err
