"""The benchmark of a searcher: what it calls, never a time."""

from typing import NamedTuple, cast

import jax
import numpy as np

from fs_jax.evaluate.speed import serving
from fs_jax.gallery import memories as memory_store
from fs_jax.search import fusion, loading, scorer, searcher
from tests.search import test_rerank
from tests.support import inprocess


class Searcher:
  """Compiles a program for each new number of queries, unless warmed."""

  def __init__(self):
    self.double, self.warmed = jax.jit(lambda x: 2 * x), False

  def warm(self):
    self.double(np.ones(9))
    self.warmed = True
    return 1.5

  def search(self, queries, rerank):
    assert rerank == serving.RERANKED
    self.double(np.ones(9 if self.warmed else len(queries)))


class Judging(NamedTuple):
  """As much of a Searcher as the benchmark of padding asks for."""

  judge: loading.Judge
  scorer: scorer.Scorer


def served(search, texts=("a", "b")):
  return serving.Served(cast(searcher.Searcher, search), texts)


def test_first_answers_are_told_from_later_ones():
  made = served(Searcher())
  assert serving.warm_up(made) == {"warm_seconds": 1.5, "warm_programs": 1}
  made = served(Searcher())  # that nobody has warmed
  rows = list(serving.measure_waits(made, (1, 3), later=2))
  assert [row.queries for row in rows] == [1, 3]
  for row in rows:
    assert (row.cold.programs, row.warm.programs) == (1, 0)
    assert row.cold.first_ms > 0 and row.warm.later_ms > 0
    assert len(serving.format_line(row)) == len(
      serving.format_head().splitlines()[0]
    )


def test_padded_lists_are_compared_with_their_own_shapes(tmp_path):
  run, memory = test_rerank.judge()
  with memory_store.Writer(
    tmp_path / "s", {"slow": run.slow_contract}
  ) as writer:
    writer.append(memory, [f"v{i}" for i in range(test_rerank.C)])
  memories = memory_store.Memories(tmp_path / "s")
  texts = ("1 2 3", "1", "4 5 6 7")
  weights = fusion.Weights(0.5, 3.0, 1.0, 0.0, (), 5, 1, 0)
  judge = loading.Judge(run, memories, weights)
  made = served(Judging(judge, scorer.Scorer(run, memories)), texts)
  found = serving.measure_padding(made, 3, 5, calls=2)
  assert (found["queries"], found["k"]) == (3, 5)
  assert found["ratio"] > 0 and found["apart"] < 1e-5


def test_a_workdir_without_a_stage_is_refused(tmp_path):
  done = inprocess.launch("bench", "serve", f"--workdir={tmp_path}")
  assert done.code == 2
  assert "must hold a trained fast or distill; got neither" in done.err
