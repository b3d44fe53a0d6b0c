"""Stages that an earlier version trained still open; what it derived is made
again.

tests/fixtures/stages-e71db15.tar.xz holds the three stages of
tests/support/recipe.py (with patches of 16 pixels), trained by commit e71db15:
before contract.json, before fit.json had a schema. Optimiser states and logs
are left out.
"""

import json
import pathlib
import tarfile

import pytest

from fs_jax.runs import contract, layout, stages
from fs_jax.search import fusion

ARCHIVE = (
  pathlib.Path(__file__).parents[1] / "fixtures" / "stages-e71db15.tar.xz"
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("old") / "W"
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(folder, filter="data")
  return folder


@pytest.mark.parametrize("stage", ["fast", "slow", "distill"])
def test_a_stage_opens_with_the_parameters_it_had(workdir, stage):
  run = stages.load(workdir / stage)
  assert run.step == run.cfg.train.steps
  where = "distill" if stage == "distill" else "slow"
  # What that version noted of the parameters it fitted weights for.
  noted = json.loads((workdir / where / layout.WEIGHTS).read_text())["contract"]
  model = "slow" if stage == "slow" else "fast"
  assert contract.digest(run.params[model]) == noted[model]["digest"]
  assert run.tokenizer.hash == noted[model]["tokenizer"]


@pytest.mark.parametrize("stage", ["slow", "distill"])
def test_weights_without_a_schema_are_refused_with_their_command(
  workdir, stage
):
  with pytest.raises(ValueError) as error:
    fusion.load(workdir / stage)
  said = str(error.value)
  assert "must be of schema 1 and kind 'weights'; got None and None" in said
  assert said.endswith(f"python -m launch.evaluate --fit --workdir={workdir}")
