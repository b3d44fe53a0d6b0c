"""Plans that are kept: named, read back, made anew where something changed."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
from etils import epath

from fs_jax.machine import compile_cache
from fs_jax.train.plan import plan, render, table
from tests.support import lowered
from tests.train.test_plan import made


@pytest.mark.parametrize(
  ("name", "file"),
  [
    ("configs/coco.py:fast", "coco-fast.json"),
    ("configs/cc12m.py:fast@2*v5e:16x16", "cc12m-fast-2-v5e-16x16.json"),
    (
      "configs/coco.py:fast --config.train.batch_size=8",
      "coco-fast-config.train.batch_size-8.json",
    ),
  ],
)
def test_a_plan_s_file_is_named_after_it(name, file):
  assert table.file_name(name) == file


def test_a_row_is_kept_until_something_changes(tmp_path, monkeypatch):
  cfg, path = lowered.step(), epath.Path(tmp_path) / "row.json"
  assert table.read_row(path, cfg) is None
  table.write_row(path, made(), cfg)
  assert table.read_row(path, cfg) == made(steps=cfg.train.steps)
  other = dataclasses.replace(cfg, seed=1)
  assert table.read_row(path, other) is None
  with monkeypatch.context() as newer:
    newer.setattr(compile_cache, "versions", lambda: {"jax": "newer"})
    assert table.read_row(path, cfg) is None
  values = json.loads(path.read_text())
  for spoilt in (
    json.dumps(values)[:-20],
    "[]",
    "",
    json.dumps({"key": table.key(cfg)}),  # of an earlier version
    json.dumps(values | {"plan": {"memory": {"needed": 1}}}),
  ):
    path.write_text(spoilt)
    assert table.read_row(path, cfg) is None, spoilt


def test_code_that_moved_changes_nothing_and_another_program_does(
  tmp_path, monkeypatch
):
  """A source that changed is lowered again, and its program compared."""
  cfg, path = lowered.step(), epath.Path(tmp_path) / "row.json"
  table.write_row(path, made(program="one"), cfg)
  asked = []

  def fingerprint(cfg):
    asked.append(cfg)
    return "one"

  monkeypatch.setattr(plan, "fingerprint", fingerprint)
  assert table.read_row(path, cfg) and not asked  # the source is what it was
  table._source.cache_clear()
  with monkeypatch.context() as edited:
    real = pathlib.Path.read_bytes
    edited.setattr(
      pathlib.Path,
      "read_bytes",
      lambda path: real(path) + b"#" * (path.name == "losses.py"),
    )
    assert table.read_row(path, cfg) and len(asked) == 1
    assert table.read_row(path, cfg) and len(asked) == 1  # noted
    edited.setattr(plan, "fingerprint", lambda cfg: "another")
    table._source.cache_clear()
    edited.setattr(pathlib.Path, "read_bytes", lambda path: b"")
    assert table.read_row(path, cfg) is None
  table._source.cache_clear()


def test_code_that_is_edited_meanwhile_is_not_what_planned(monkeypatch):
  before = table._source(table._SOURCE)
  monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: b"edited")
  assert table._source(table._SOURCE) == before


def test_every_source_that_rows_are_kept_by_is_there():
  package = pathlib.Path(table.__file__).parents[2]
  for name in (*table._SOURCE, *table._READER):
    assert (package / name).exists(), name


def test_only_what_changed_is_compiled_again(tmp_path, monkeypatch, capsys):
  asked = []

  def compiled(name, cfg):
    asked.append(name)
    return dataclasses.replace(made(), config=name)

  monkeypatch.setattr(plan, "plan", compiled)
  readme = tmp_path / "README.md"
  readme.write_text(f"{render.BEGIN}\n{render.END}\n")
  recipes = {"a.py:fast": lowered.step(), "b.py:slow": lowered.step("slow")}
  for _ in range(2):
    table.plan_all(recipes, str(tmp_path), str(readme))
  assert asked == ["a.py:fast", "b.py:slow"]
  recipes["b.py:slow"] = lowered.step("slow", seed=1)
  table.plan_all(recipes, str(tmp_path), str(readme))
  assert asked == ["a.py:fast", "b.py:slow", "b.py:slow"]
  assert readme.read_text().count("| a.py:fast | v5e:2x4 |") == 1
  assert "1/2  a.py:fast: 2.000 s a step" in capsys.readouterr().err


def test_a_table_is_replaced_by_a_whole_one_only(tmp_path, monkeypatch):
  def compiled(name, cfg):
    if name.startswith("b"):
      raise RuntimeError("the compiler failed")
    return dataclasses.replace(made(), config=name)

  monkeypatch.setattr(plan, "plan", compiled)
  readme = tmp_path / "README.md"
  readme.write_text(f"{render.BEGIN}\n| all of them |\n{render.END}\n")
  recipes = {"a.py:fast": lowered.step(), "b.py:slow": lowered.step("slow")}
  with pytest.raises(RuntimeError, match="failed"):
    table.plan_all(recipes, str(tmp_path), str(readme))
  assert "| all of them |" in readme.read_text()
  assert [p.name for p in (tmp_path / "rows").iterdir()] == ["a-fast.json"]


@pytest.mark.slow
def test_all_are_what_pods_are_planned_for():
  """launch.plan --all: each dataset's stages, and where else CC12M may run."""
  listed = subprocess.run(
    [
      sys.executable,
      "-c",
      "from launch import plan\n"
      "for name, cfg in plan._recipes().items():\n"
      "  print(name, cfg.mesh.slices, cfg.mesh.topology)",
    ],
    cwd=pathlib.Path(__file__).parents[2],
    check=True,
    capture_output=True,
    text=True,
  ).stdout.splitlines()
  found = {line.removeprefix("configs/") for line in listed}
  stages = ("fast", "slow", "distill")
  for name, topology in {
    "coco": "v5e:2x4",
    "flickr30k": "v5e:2x4",
    "vatex": "v5e:4x4",
    "cc12m": "v5e:16x16",
  }.items():
    assert {f"{name}.py:{stage} 1 {topology}" for stage in stages} <= found
  for size in ("fast", "fast_l14"):
    assert {
      f"cc12m.py:{size}@v6e:16x16 1 v6e:16x16",
      f"cc12m.py:{size}@v5p:4x4x4 1 v5p:4x4x4",
      f"cc12m.py:{size}@2*v5e:16x16 2 v5e:16x16",
    } <= found


def test_configs_of_one_step_are_compiled_once(tmp_path, monkeypatch):
  """Other pictures and more steps; never another seed, batch or teacher."""
  cfg = lowered.step()
  same = lowered.step(data={"dataset": "coco"}, train={"batch_size": 96})
  same = dataclasses.replace(
    same, train=dataclasses.replace(cfg.train, steps=9)
  )
  other = lowered.step(train={"batch_size": 192})
  asked = []

  def compiled(name, cfg):
    asked.append(name)
    return dataclasses.replace(made(), config=name, steps=cfg.train.steps)

  monkeypatch.setattr(plan, "plan", compiled)
  readme = tmp_path / "README.md"
  readme.write_text(f"{render.BEGIN}\n{render.END}\n")
  recipes = {"a.py:fast": cfg, "b.py:fast": same, "c.py:fast": other}
  for _ in range(2):
    rows = table.plan_all(recipes, str(tmp_path), str(readme))
    assert asked == ["a.py:fast", "c.py:fast"]
    assert [row.config for row in rows] == list(recipes)
    assert [row.steps for row in rows] == [4, 9, 4]
  # The steps of a kept row are those of today's config.
  more = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, steps=7))
  rows = table.plan_all({"a.py:fast": more}, str(tmp_path), str(readme))
  assert (rows[0].steps, len(asked)) == (7, 2)
  teacher = {"teacher": "offline", "lists": 9}
  lists = lowered.step("distill", distill=teacher)
  assert table.key(lists) != table.key(lowered.step("distill"))


@pytest.mark.slow
def test_several_are_compiled_at_once():
  """In processes of their own, and in no order; what fails is not hidden."""
  cfg = lowered.step()  # has no topology: libtpu is not asked
  with pytest.raises(ValueError, match="a plan is for a topology"):
    list(table._compile({"a.py:fast": cfg, "b.py:fast": cfg}, 2))
  assert 1 <= table.count_jobs() <= (os.cpu_count() or 1)
