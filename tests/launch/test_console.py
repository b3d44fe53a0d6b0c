"""fs-jax: the same programs, and commands printed as it was started."""

import pathlib
import sys

import pytest
from absl import flags

from fs_jax.machine import commands
from launch import console, recipes

ROOT = pathlib.Path(__file__).parents[2]
STARTED = "/usr/bin/fs-jax"


@pytest.fixture
def started(monkeypatch):
  """As a user would start it: fs-jax <words>."""

  def start(*words):
    monkeypatch.setattr(sys, "argv", [STARTED, *words])

  yield start
  # The flags of what ran, so that other tests may run it as well.
  for flag in [*flags.FLAGS.flags_by_module_dict().get(STARTED, [])]:
    delattr(flags.FLAGS, flag.name)


def test_every_program_is_listed_with_what_it_does(started, capsys):
  started()
  console.main()
  out = capsys.readouterr().out
  for path in (ROOT / "launch").glob("*.py"):
    if path.stem not in ("__init__", "cli", "console", "recipes"):
      assert f"\n  {path.stem} " in out
  assert all(console.list_programs().values())


def test_a_program_gets_its_arguments(started, capsys):
  started("search", "--help")
  with pytest.raises(SystemExit) as left:
    console.main()
  assert left.value.code == 0
  assert "--rerank" in capsys.readouterr().out


def test_a_dash_in_a_name_is_an_underscore(started, capsys):
  started("export-index", "--help")
  with pytest.raises(SystemExit):
    console.main()
  assert "--gallery" in capsys.readouterr().out


def test_an_unknown_program_is_refused(started, capsys):
  started("serach", "words")
  with pytest.raises(SystemExit) as left:
    console.main()
  assert left.value.code == 2
  assert "did you mean 'search'?" in capsys.readouterr().err


def test_commands_are_printed_in_the_form_that_was_typed(started):
  words = ("search", "a fox's den", "--workdir=my runs")
  typed = "'a fox'\"'\"'s den' '--workdir=my runs'"
  started("train")
  assert commands.command(*words) == f"fs-jax search {typed}"
  sys.argv[0] = str(ROOT / "launch" / "train.py")
  assert commands.command(*words) == f"python -m launch.search {typed}"


@pytest.mark.parametrize(
  ("word", "becomes"),
  [
    ("--config=scenes:fast", f"--config={ROOT}/configs/scenes.py:fast"),
    ("--config=coco:slow", f"--config={ROOT}/configs/coco.py:slow"),
    ("--config=configs/scenes.py:fast", "--config=configs/scenes.py:fast"),
    ("--config=nope:fast", "--config=nope:fast"),
    ("--config.seed=1", "--config.seed=1"),
    ("--workdir=scenes", "--workdir=scenes"),
  ],
)
def test_a_recipe_of_the_package_has_a_name(word, becomes):
  assert recipes._resolve_word(word) == becomes


def test_a_recipe_may_be_named_in_two_words():
  argv = ["train", "--config", "scenes:fast", "--workdir=W"]
  path = f"--config={ROOT}/configs/scenes.py:fast"
  assert recipes.resolve(argv) == ["train", path, "--workdir=W"]
  assert recipes.resolve(["train", "--config"]) == ["train", "--config"]
