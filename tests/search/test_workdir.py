"""What a trained workdir holds is found, or it is said what to run.

That it answers right is for test_launch.py, and that what does not fit is
refused for test_mends.py.
"""

import pytest
from etils import epath

from fs_jax.runs import stages
from fs_jax.search import workdir as workdirs


@pytest.fixture
def workdir(tmp_path):
  """Two Fasts and their judge, trained, as far as files tell."""
  workdir = epath.Path(tmp_path)
  for stage in ("fast", "slow", "distill"):
    (workdir / stage).mkdir()
    (workdir / stage / stages.DONE).touch()
  return workdir


def test_the_distilled_fast_is_found_before_the_other(workdir):
  kept = workdir / "gallery" / "test"
  (kept / "fast" / "index").mkdir(parents=True)
  found = workdirs.find_gallery(workdir, "test")
  assert (found.fast, found.fit) == (workdir / "fast", workdir / "slow")
  (kept / "distill" / "index").mkdir(parents=True)
  assert workdirs.find_gallery(workdir, "test") == workdirs.Found(
    fast=workdir / "distill",
    slow=workdir / "slow",
    fit=workdir / "distill",
    index=kept / "distill" / "index",
    store=kept / "store",
    remake=f"python -m launch.evaluate --workdir={workdir} --split=test",
  )


def test_what_programs_one_by_one_leave_is_found(workdir):
  (workdir / "gallery" / "index").mkdir(parents=True)
  found = workdirs.find_gallery(workdir, "test")
  assert found.fast == workdir / "distill"
  assert found.index == workdir / "gallery" / "index"
  assert found.store == workdir / "gallery" / "store"


def test_what_is_missing_is_said(workdir, tmp_path):
  with pytest.raises(ValueError, match="index of split 'test'; got none"):
    workdirs.find_gallery(workdir, "test")
  with pytest.raises(
    ValueError, match="a trained fast or distill; got neither"
  ):
    workdirs.find_gallery(epath.Path(tmp_path / "empty"), "test")
