"""Nothing that is kept outlives what it was made from.

A workdir is evaluated, its stages are trained again in another way, and what
comes then is what an empty workdir of the same stages gives. And whatever a
study leaves says what it was made from.
"""

import json
import pathlib
import shutil
from typing import NamedTuple
from unittest import mock

import jax
import pytest
from etils import epath

from fs_jax.evaluate.studies import answers, study
from fs_jax.machine import manifest as manifests
from fs_jax.runs import layout
from fs_jax.search import rankers
from tests.support import inprocess

QUERIES = 12
STAGES = ("fast", "slow", "distill")


class Table(NamedTuple):
  """A report without what a clock said."""

  rows: dict
  fits: dict
  paired: list


def stages_of(workdir: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
  """The trained stages of a workdir alone: nothing derived beside them."""
  for stage in STAGES:
    shutil.copytree(workdir / stage, to / stage)
  for path in (to / "slow" / "validation", to / "gallery"):
    shutil.rmtree(path, ignore_errors=True)
  return to


def evaluate(workdir: pathlib.Path, queries: int = QUERIES) -> Table:
  with (
    mock.patch.object(jax, "devices", return_value=jax.devices()[:1]),
    mock.patch.object(study, "KS", (5, 20)),
  ):
    made = study.evaluate_split(epath.Path(workdir), "test", queries)
  rows = {
    row["name"]: {k: v for k, v in row.items() if "ms" not in k}
    for row in made["rows"]
  }
  return Table(rows, made["fits"], made["paired"])


def train(workdir: pathlib.Path, trained: pathlib.Path, *stages: str, seed=1):
  for stage in stages:
    shutil.rmtree(workdir / stage)
    done = inprocess.launch(
      "train",
      f"--config={inprocess.CONFIG}:{stage}",
      f"--config.data.dir={trained.parent / 'data'}",
      f"--workdir={workdir}",
      f"--config.seed={seed}",
    )
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
  """A workdir with everything that evaluating keeps, and its table."""
  workdir = stages_of(trained, tmp_path_factory.mktemp("evaluated") / "W")
  return workdir, evaluate(workdir)


def test_stages_trained_again_have_tables_of_their_own(
  trained, evaluated, tmp_path
):
  """All that was kept lies where the new results look for it."""
  before, table = evaluated
  workdir = inprocess.copy(before, tmp_path)
  train(workdir, trained, "slow", "distill")
  now = evaluate(workdir)
  assert now == evaluate(stages_of(workdir, tmp_path / "fresh" / "W"))
  assert now.rows["slow"] != table.rows["slow"]
  assert now.fits != table.fits
  assert now.rows["fast"] == table.rows["fast"]
  # The old stages put back find no table of the new ones.
  for stage in ("slow", "distill"):
    shutil.rmtree(workdir / stage)
    shutil.copytree(before / stage, workdir / stage)
  assert evaluate(workdir) == table


def test_kept_tables_are_read_where_nothing_changed(evaluated, monkeypatch):
  workdir, table = evaluated
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
  monkeypatch.setattr(rankers, "time_answers", None)  # nobody is asked
  assert evaluate(workdir) == table
  after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
  changed = {p.name for p in after if after[p] != before.get(p)}
  assert changed == {f"report-{QUERIES}.json"}


@pytest.mark.parametrize(
  "lost", ["memories", "vectors", "index", "items", "fast"]
)
def test_what_was_deleted_is_made_again(evaluated, tmp_path, lost):
  """Ticks that outlive what they stand for skip nothing."""
  before, table = evaluated
  workdir = inprocess.copy(before, tmp_path)
  shutil.rmtree(workdir / "gallery" / "test" / lost)
  assert evaluate(workdir) == table


def fit_with(workdir: pathlib.Path, **changes) -> None:
  path = workdir / "distill" / layout.WEIGHTS
  values = json.loads(path.read_text())
  values["fit"] |= changes
  path.write_text(json.dumps(values))


@pytest.mark.parametrize(
  "change",
  [
    {"machine": {"device": "8 x TPU v5e"}},
    {"fast": {"digest": "0" * 64}},
    {"fast_config": {"optim.learning_rate": 1.0}},
    {"slow": {"digest": "0" * 64}},
    {"slow_config": {"slow.d_mem": 1}},
    {"weights": {"digest": "0" * 64}},
    {"weights": {"reranked": 21}},
    {"index": {"digest": "0" * 64}},
    {"items": {"ids": "0" * 64}},
    {"split": {"split": "validation"}},
    {"split": {"seed": 7}},
    {"queries": {"texts": "0" * 64}},
    {"queries": {"truth": "0" * 64}},
    {"queries": {"depth": 50}},
  ],
  ids=lambda x: ".".join([*x, *next(iter(x.values()))]),
)
def test_answers_of_anything_else_are_asked_for_again(evaluated, change):
  """Each part that answers carry, field by field."""
  workdir, _ = evaluated
  kept = workdir / "gallery" / "test" / f"queries-{QUERIES}"
  path = epath.Path(kept / "answers" / "rerank@20")
  manifest = json.loads((path / manifests.MANIFEST).read_text())
  ((part, fields),) = change.items()
  assert fields.keys() <= manifest["contract"][part].keys()
  other = manifest["contract"] | {part: manifest["contract"][part] | fields}
  asked = []

  class Asked(Exception):
    pass

  def make():
    asked.append(part)
    raise Asked

  steps = study.checklist.Checklist(kept)
  answers.rank(steps, "rerank@20", manifest["contract"], make, make, None)
  assert not asked
  with pytest.raises(Asked):
    answers.rank(steps, "rerank@20", other, make, make, None)


# What a workdir holds that is no result found again by its name: the stages
# themselves, their logs, and pages for people. All else is kept, and says of
# what.
NOT_KEPT = (
  *("config.json", "tokenizer.json", "metrics.jsonl", "parameters.txt"),
  *("MODEL_CARD.md", "DONE", "checkpoints/", "tb/", "data/", "index.html"),
  "study.json",
)


def test_everything_that_is_kept_says_what_it_was_made_from(evaluated):
  workdir, _ = evaluated
  folders = [p.parent for p in workdir.rglob(manifests.MANIFEST)]
  found = 0
  for path in workdir.rglob("*"):
    name = str(path.relative_to(workdir))
    if path.is_dir() or any(
      part in f"/{name}" if part.endswith("/") else path.name == part
      for part in NOT_KEPT
    ):
      continue
    owner = next((f for f in folders if f in path.parents), None)
    record = owner / manifests.MANIFEST if owner else path
    made_from = json.loads(record.read_text())["contract"]
    assert made_from and all(made_from.values()), path
    found += 1
  assert found > 50
