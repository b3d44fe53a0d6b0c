"""The quickstart on tiny scenes, twice: killed on its way, the same numbers."""

import dataclasses
import json
import pathlib
import shutil
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest

from fs_jax import configdict
from fs_jax.evaluate.studies import answers, checklist, study
from fs_jax.runs import journal, layout, stages
from fs_jax.search import weigh
from fs_jax.train import loop, train
from tests.support import recipe

STAGES = ("fast", "slow", "distill")
QUERIES = 12


class Killed(Exception):
  pass


class Made(NamedTuple):
  folder: pathlib.Path
  report: dict


def quickstart(folder, seed=0):
  with (
    mock.patch.object(jax, "devices", return_value=jax.devices()[:1]),
    mock.patch.multiple(study, QUERIES=QUERIES, LOOKS=1, KS=(5, 20)),
  ):
    return study.quickstart(recipe.get_config, folder, seed=seed)


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
  """A study that nobody disturbed, of stages that the programs trained."""
  folder = tmp_path_factory.mktemp("whole") / "W"
  shutil.copytree(trained.parent / "data", folder / "data")
  for stage in STAGES:
    shutil.copytree(trained / stage, folder / stage)
    path = folder / stage / layout.CONFIG
    path.write_text(path.read_text().replace(str(trained.parent), str(folder)))
  return Made(folder, quickstart(folder))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
  """Another from nothing, killed before its last stage and begun again."""
  folder = tmp_path_factory.mktemp("killed") / "W"
  until = train.train

  def trains(cfg, workdir, *rest):
    if cfg.stage == "distill":
      raise Killed
    return until(cfg, workdir, *rest)

  with mock.patch.object(train, "train", trains), pytest.raises(Killed):
    quickstart(folder)
  assert not (folder / "report.json").exists()
  trained = []

  def notes(cfg, workdir, *rest):
    trained.append(cfg.stage)
    return until(cfg, workdir, *rest)

  with mock.patch.object(train, "train", notes):
    made = quickstart(folder)
  assert trained == ["distill"]  # the others were done
  return Made(folder, made)


def rows_of(made):
  """Of each ranker what it answered, without how long that took."""
  return {
    row["name"]: {k: v for k, v in row.items() if "ms" not in k}
    for row in made.report["rows"]
  }


def test_a_study_leaves_its_report_and_its_page(whole):
  folder, made = whole
  assert json.loads((folder / "report.json").read_text()) == made
  assert list(rows_of(whole)) == [
    "fast",
    "fast_distilled",
    "slow",
    "fast_rerank@20",
    "rerank@5",
    "rerank@20",
  ]
  assert made["queries"] == QUERIES
  assert made["example"]  # a sentence that launch.quickstart hands on
  assert made["digests"].keys() == set(STAGES)
  assert len(set(made["digests"].values())) == len(STAGES)
  html = (folder / "index.html").read_text()
  for row in made["rows"]:
    assert row["name"] in html
  for stage in STAGES:
    assert stages.is_finished(folder / stage)


@pytest.mark.bitwise
def test_a_study_killed_on_its_way_ends_with_the_same_numbers(whole, killed):
  assert whole.report["digests"] == killed.report["digests"]
  assert rows_of(whole) == rows_of(killed)
  for key in ("fits", "paired", "chance", "gallery"):
    assert whole.report[key] == killed.report[key], key
  for name in rows_of(whole):
    a, b = (
      answers.read_answers(made.folder / "answers" / name)
      for made in (whole, killed)
    )
    jax.tree.map(np.testing.assert_array_equal, a.candidates, b.candidates)
    jax.tree.map(np.testing.assert_array_equal, a.in_group, b.in_group)


def test_each_step_is_said_once(whole, killed):
  for made in (whole, killed):
    for stage in STAGES:
      lines = journal.read(made.folder / stage)
      steps = [line["step"] for line in lines if line["split"] == "train"]
      cfg = recipe.get_config(stage).train
      assert steps == [*range(cfg.log_every, cfg.steps + 1, cfg.log_every)]


def nobody(*_, **__):
  pytest.fail("nothing is left to train")


def test_a_finished_study_trains_and_writes_nothing(whole):
  folder, made = whole
  before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
  with mock.patch.object(loop, "fit", nobody):
    assert quickstart(folder) == made
  assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_lost_report_is_written_again_from_the_parts(whole):
  folder, made = whole
  for name in ("report.json", "index.html"):
    (folder / name).unlink()
  with (
    mock.patch.object(loop, "fit", nobody),
    mock.patch.object(weigh, "weigh", nobody),
  ):
    again = quickstart(folder)
  # With the times of the first time: answers are kept with theirs.
  assert again["rows"] == made["rows"]
  assert again["digests"] == made["digests"]
  assert (folder / "index.html").exists()


def test_another_seed_in_the_same_folder_is_refused(whole):
  with pytest.raises(ValueError, match=r"seed it began with, 0; got 1\."):
    quickstart(whole.folder, seed=1)


@pytest.mark.slow
def test_stages_of_a_study_validate_where_their_config_asks(tmp_path):
  """As the quickstart's do, and those of these tests do not."""
  cfg = configdict.parse(recipe.get_config("fast"))
  cfg = dataclasses.replace(
    cfg,
    data=dataclasses.replace(cfg.data, dir=str(tmp_path / "data")),
    train=dataclasses.replace(cfg.train, eval_every=2),
  )
  with mock.patch.object(jax, "devices", return_value=jax.devices()[:1]):
    study.train_all(checklist.Checklist(tmp_path), {"fast": cfg})
  lines = journal.read(tmp_path / "fast")
  assert [x["step"] for x in lines if x["split"] == "validation"] == [2, 4]
