"""What a refusal says to do, done: typed as it is printed, it mends.

Each case is a workdir in which one thing no longer fits another. The program is
run, whatever command its error ends with is run, and so on until it works.
"""

import json
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.support import inprocess

COMMAND = re.compile(r"((?:python -m launch\.|rm -r )\S.*)$")
FLAG = re.compile(r"or give (\S.*)$")
ROUNDS = 4


def launch(command: str) -> inprocess.Done:
  """Runs what a shell would: `python -m launch.X ...` or `rm -r ...`."""
  words = shlex.split(command)
  if words[:2] == ["rm", "-r"]:
    shutil.rmtree(words[2])
    return inprocess.Done(0, "", "")
  assert words[:2] == ["python", "-m"], command
  return inprocess.launch(words[2].removeprefix("launch."), *words[3:])


def given(command: str, flag: str) -> str:
  """The command with a flag, in place of what was given for it before."""
  name = shlex.split(flag)[0].partition("=")[0]
  words = [w for w in shlex.split(command) if w.partition("=")[0] != name]
  return f"{shlex.join(words)} {flag}"


def walk(command: str) -> list[str]:
  """Follows every mend until the command works; returns what was refused."""
  refused: list[str] = []
  for _ in range(ROUNDS):
    done = launch(command)
    if done.code == 0:
      return refused
    said = done.err.strip().splitlines()[-1]
    assert done.code == 2 and "; got " in said, done.err
    assert said not in refused, f"it leads in a circle: {said}"
    refused.append(said)
    flag, mend = FLAG.search(said), COMMAND.search(said)
    if flag:
      command = given(command, flag[1])
      continue
    assert mend, f"no command to type: {said}"
    for part in mend[1].split(" && "):
      mended = launch(part)
      assert mended.code == 0, f"{part}: {mended.err}"
  pytest.fail(f"refused after {ROUNDS} mends: {refused}")


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory):
  """The same workdir with Slow trained again, from another seed."""
  workdir = tmp_path_factory.mktemp("other") / "W"
  shutil.copytree(trained, workdir)
  shutil.rmtree(workdir / "slow")
  done = launch(train(workdir, trained, "slow", "--config.seed=1"))
  assert done.code == 0, done.err
  return workdir


@pytest.fixture
def mine(trained, tmp_path):
  return inprocess.copy(trained, tmp_path)


def train(
  workdir: pathlib.Path, trained: pathlib.Path, stage: str, *flags: str
) -> str:
  return " ".join(
    [
      f"python -m launch.train --config={inprocess.CONFIG}:{stage}",
      f"--config.data.dir={trained.parent / 'data'} --workdir={workdir}",
      *flags,
    ]
  )


def search(workdir: pathlib.Path, *flags: str) -> str:
  return " ".join(
    [
      f"python -m launch.search 'a big fox' --workdir={workdir} --sheet=",
      *flags,
    ]
  )


def evaluate(workdir: pathlib.Path) -> str:
  return f"python -m launch.evaluate --workdir={workdir} --queries=4"


def test_memories_and_weights_of_another_slow(other, tmp_path):
  workdir = inprocess.copy(other, tmp_path)
  refused = walk(search(workdir))
  named = ("memories ", "fit.json")
  assert [n in r for n, r in zip(named, refused, strict=True)] == [True, True]
  assert all("slow.digest" in said for said in refused)


def test_a_stage_that_learned_from_another_slow(other, trained, tmp_path):
  workdir = inprocess.copy(other, tmp_path)
  (refused,) = walk(train(workdir, trained, "distill"))
  assert "teacher_slow.digest" in refused and "rm -r" in refused


def test_a_gallery_of_another_fast(mine):
  (refused,) = walk(
    f"python -m launch.encode --run={mine / 'fast'} --slow={mine / 'slow'}"
  )
  assert "fast.digest" in refused and "--replace" in refused
  # The index is still of the vectors that were there before.
  (refused,) = walk(
    f"python -m launch.export_index --gallery={mine / 'gallery' / 'test'} "
    f"--run={mine / 'fast'}"
  )
  assert "fast.digest" in refused and "--replace" in refused
  (refused,) = walk(search(mine))
  assert "fast.digest" in refused


def test_an_index_of_vectors_of_another_fast(mine):
  refused = walk(
    f"python -m launch.export_index --gallery={mine / 'gallery' / 'test'} "
    f"--run={mine / 'fast'}"
  )
  assert ["launch.encode" in said for said in refused] == [True, False]
  assert all("fast.digest" in said for said in refused)


def test_an_index_of_another_split(mine):
  (refused,) = walk(search(mine, "--split=validation"))
  assert "got none" in refused and "--split=validation" in refused
  assert not walk(search(mine, "--split=validation"))


def test_no_index_at_all(mine):
  shutil.rmtree(mine / "gallery")
  (refused,) = walk(search(mine))
  assert "got none" in refused


@pytest.mark.parametrize("part", ["index", "memories", "items"])
def test_a_damaged_folder(mine, part):
  files = (mine / "gallery" / "test" / part).rglob("*.*")
  listed = [p for p in files if p.name != "manifest.json"]
  path = max(listed, key=lambda p: p.stat().st_size)
  with open(path, "r+b") as file:
    file.truncate(path.stat().st_size - 1)
  (refused,) = walk(search(mine))
  assert "must have" in refused


PICTURES = 16
SMALL = (
  *("--config.data.image_size=32", "--config.train.steps=2"),
  *("--config.train.batch_size=16", "--config.train.eval_every=0"),
  "--config.train.save_every=2",
)


def make_folder(folder: pathlib.Path) -> pathlib.Path:
  """Pictures of one's own: noise of which every picture is another."""
  (folder / "images").mkdir(parents=True)
  draw = np.random.default_rng(0)
  for split in ("train", "dev", "test"):
    lines = []
    for i in range(PICTURES):
      name = f"{split}{i}.png"
      pixels = draw.integers(0, 255, (32, 32, 3), np.uint8)
      Image.fromarray(pixels).save(folder / "images" / name)
      lines.append(json.dumps({"image": name, "captions": [f"picture {i}"]}))
    (folder / f"{split}.jsonl").write_text("\n".join(lines))
  return folder


@pytest.mark.slow
def test_a_picture_replaced_under_its_name(tmp_path):
  """A gallery of one's own pictures is found to be of other pictures."""
  folder, workdir = make_folder(tmp_path / "pictures"), tmp_path / "W"
  for command in (
    f"python -m launch.train --config=configs/folder.py:fast "
    f"--config.data.dir={folder} --workdir={workdir} {shlex.join(SMALL)}",
    f"python -m launch.encode --run={workdir / 'fast'}",
    f"python -m launch.export_index --gallery={workdir / 'gallery' / 'test'} "
    f"--run={workdir / 'fast'}",
    asked := (
      f"python -m launch.search 'picture 3' --workdir={workdir} --sheet= "
      "--rerank=0"
    ),
  ):
    assert not walk(command)
  shutil.copy(folder / "images/test1.png", folder / "images/test0.png")
  (refused,) = walk(asked)
  assert (
    refused.startswith("error: split.contents: ") and "--replace" in refused
  )


@pytest.fixture(scope="module")
def studied(trained, tmp_path_factory):
  """Trained stages, and the gallery that evaluating leaves."""
  workdir = tmp_path_factory.mktemp("studied") / "W"
  for stage in ("fast", "slow", "distill"):
    shutil.copytree(trained / stage, workdir / stage)
  assert not walk(evaluate(workdir))
  return workdir


def test_a_gallery_that_a_study_made(studied, other, tmp_path):
  """Its own bookkeeping skips nothing that a refusal asks for."""
  workdir = inprocess.copy(studied, tmp_path)
  shutil.rmtree(workdir / "slow")
  shutil.copytree(other / "slow", workdir / "slow")
  refused = walk(search(workdir))
  assert "slow.digest" in refused[0] and "launch.encode" in refused[0]
  assert not walk(evaluate(workdir))


@pytest.mark.parametrize("part", ["index", "vectors", "memories", "fast/index"])
def test_a_damaged_folder_of_a_study(studied, tmp_path, part):
  """What programs derive by themselves may be deleted."""
  workdir = inprocess.copy(studied, tmp_path)
  folder = workdir / "gallery" / "test" / part
  with open(folder / "ids.txt", "a") as file:
    file.write("x\n")
  (refused,) = walk(evaluate(workdir))
  assert refused.endswith(f"rm -r {folder}")


@pytest.mark.parametrize(
  ("stage", "flag", "field"),
  [
    ("distill", "--config.data.mean='(0.1, 0.1, 0.1)'", "data.mean"),
    ("distill", "--config.data.resize=crop", "data.resize"),
    ("distill", "--config.tokens.length=9", "tokens.length"),
    ("distill", "--config.slow.d_mem=16", "slow.d_mem"),
    ("slow", "--config.data.std='(0.1, 0.1, 0.1)'", "data.std"),
    ("slow", "--config.tokens.lowercase=False", "tokens.lowercase"),
  ],
)
def test_a_stage_that_does_not_fit_what_it_begins_from(
  mine, trained, stage, flag, field
):
  shutil.rmtree(mine / stage)
  (refused,) = walk(train(mine, trained, stage, flag))
  assert refused.startswith(f"error: {field}: ")
