"""One layout of a workdir: where the gallery of each Fast lies."""

import pytest
from etils import epath

from fs_jax.runs import layout


@pytest.fixture
def workdir(tmp_path):
  for name in ("fast", "slow"):
    layout.stage(tmp_path, name).mkdir()
    (layout.stage(tmp_path, name) / layout.DONE).touch()
  return epath.Path(tmp_path)


def test_the_better_fast_serves(workdir, tmp_path):
  assert layout.best_fast(tmp_path / "empty") is None
  assert layout.best_fast(workdir) == "fast"
  layout.stage(workdir, "distill").mkdir()
  assert layout.best_fast(workdir) == "fast"  # not trained to its end
  (layout.stage(workdir, "distill") / layout.DONE).touch()
  assert layout.best_fast(workdir) == "distill"


def test_a_fast_that_is_only_compared_lies_below(workdir):
  own = layout.gallery(workdir, "test")
  assert layout.fast_gallery(workdir, "test", "fast") == own
  assert layout.fast_gallery(workdir, "test", "longer").folder == (
    own.folder / "longer"
  )


def test_no_two_things_lie_in_one_place(workdir):
  own = layout.gallery(workdir, "test")
  below = layout.fast_gallery(workdir, "test", "longer")
  places = [
    *(own.items, own.vectors, own.memories, own.index, below.vectors),
    *(below.index, layout.queries(workdir, "test", 9)),
    layout.report(workdir, "test", 9),
  ]
  assert len(set(places)) == len(places)
