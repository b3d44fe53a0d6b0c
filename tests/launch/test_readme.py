"""The README's block of Python does what it says, on a workdir and packed."""

import contextlib
import doctest
import io
import pathlib
import re

import pytest

from tests.support import inprocess

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = "runs/quickstart"


def examples():
  text = (ROOT / "README.md").read_text()
  block = re.search(r"```python\n(.*?)```", text, re.S)
  assert block, "the README begins with a block of Python"
  return doctest.DocTestParser().get_examples(block[1])


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp("packed") / "G"
  done = inprocess.launch(
    "encode",
    f"--run={trained / 'distill'}",
    f"--slow={trained / 'slow'}",
    f"--pack={folder}",
  )
  assert done.code == 0, done.err
  return trained, folder


@pytest.mark.parametrize("which", [0, 1], ids=["workdir", "packed"])
def test_the_block_runs_and_prints_what_it_shows(packed, which):
  """On another world than the README's: other captions in the same form."""
  names: dict = {}
  for example in examples():
    source = example.source.replace(FOLDER, str(packed[which]))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      exec(compile(source, "README.md", "single"), names)
    got, want = printed.getvalue().splitlines(), example.want.splitlines()
    assert len(got) == len(want)
    form = r"test-\d{6}  moved [+-]\d+  an? \w+.*"
    assert all(re.fullmatch(form, line) for line in (*got, *want))
  assert names["answer"].stages_ms


def test_a_packed_gallery_answers_as_its_workdir_without_any_data(
  packed, tmp_path
):
  workdir, folder = packed
  moved = tmp_path / "elsewhere"
  folder = pathlib.Path(inprocess.copy(folder, moved))
  said = []
  for place in (workdir, folder):
    done = inprocess.launch(
      "search", "a big fox", f"--workdir={place}", "--sheet="
    )
    assert done.code == 0, done.err
    table = [x for x in done.out.splitlines() if x.startswith("│")]
    said.append(table)
  assert said[0] == said[1]
  held = {p.suffix for p in folder.rglob("*")}
  assert not held & {".array_record", ".png", ".jpg"}


def test_a_packed_gallery_is_drawn_from_its_thumbnails(packed, tmp_path):
  sheet = tmp_path / "sheet.png"
  done = inprocess.launch(
    "search", "a big fox", f"--workdir={packed[1]}", f"--sheet={sheet}"
  )
  assert done.code == 0, done.err
  assert sheet.stat().st_size > 1000
  assert "OpenMoji" in done.out  # whose licence travels with them


def test_a_packed_gallery_refuses_another_split(packed):
  done = inprocess.launch(
    "search", "a fox", f"--workdir={packed[1]}", "--split=validation"
  )
  assert done.code == 2
  assert "split: must be 'test'" in done.err


def test_a_file_that_was_lost_on_the_way_is_named(packed, tmp_path):
  folder = pathlib.Path(inprocess.copy(packed[1], tmp_path))
  (folder / "fast" / "tokenizer.json").unlink()
  done = inprocess.launch("search", "a fox", f"--workdir={folder}", "--sheet=")
  assert done.code == 2
  assert "fast/tokenizer.json" in done.err and "copy the whole" in done.err


@pytest.mark.parametrize("name", ["fit.json", "fast/part.json", "ATTRIBUTION"])
def test_a_file_that_changed_but_not_in_size_is_named(packed, tmp_path, name):
  folder = pathlib.Path(inprocess.copy(packed[1], tmp_path))
  held = (folder / name).read_bytes()
  (folder / name).write_bytes(held.replace(b"a", b"b", 1))
  done = inprocess.launch("search", "a fox", f"--workdir={folder}", "--sheet=")
  assert done.code == 2
  assert f"{name!r} must be as it was packed" in done.err


def test_a_copy_that_was_cut_short_is_no_workdir(packed, tmp_path):
  folder = pathlib.Path(inprocess.copy(packed[1], tmp_path))
  (folder / "manifest.json").unlink()
  done = inprocess.launch("search", "a fox", f"--workdir={folder}", "--sheet=")
  assert done.code == 2
  assert "got none. copy the whole folder again" in done.err
  done = inprocess.launch("encode", f"--run={folder / 'fast'}")
  assert done.code == 2 and "must hold all parameters" in done.err


def test_fast_alone_is_packed_and_says_how_it_is_asked(packed, tmp_path):
  folder = tmp_path / "of #1"  # a name that means something in addresses
  done = inprocess.launch(
    "encode", f"--run={packed[0] / 'distill'}", f"--pack={folder}"
  )
  assert done.code == 0 and "--rerank=0" in done.out, done.err
  ask = "search", "a big fox", f"--workdir={folder}", "--sheet="
  done = inprocess.launch(*ask)
  assert done.code == 2 and "or give --rerank=0" in done.err
  done = inprocess.launch(*ask, "--rerank=0")
  assert done.code == 0, done.err
