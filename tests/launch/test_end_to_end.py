"""From pictures to answers, twice: the same both times, by whatever door.

The first time is by the programs, which other tests share; the second by the
library, from nothing, with data made anew in another folder.
"""

import dataclasses
import json
import pathlib
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest
from etils import epath

from fs_jax import configdict, types
from fs_jax.data import sources
from fs_jax.evaluate import validation
from fs_jax.gallery import corpus, encode, exact, index, memories
from fs_jax.runs import journal, layout, stages
from fs_jax.search import rerank, searcher, weigh
from fs_jax.train import tasks, train
from tests.support import recipe, synthetic

pytestmark = pytest.mark.slow

STAGES = ("fast", "slow", "distill")
CLOCK = synthetic.CLOCKED  # what a clock said


class Made(NamedTuple):
  """A workdir, and what was made of it."""

  workdir: pathlib.Path
  runs: dict[str, stages.Run]
  corpus: types.Corpus
  memories: memories.Memories
  index: exact.Index
  source: sources.Source  # the gallery


def cfg_of(stage, data):
  cfg = configdict.parse(recipe.get_config(stage))
  return dataclasses.replace(
    cfg, data=dataclasses.replace(cfg.data, dir=str(data))
  )


def opened(workdir, source):
  loaded = {stage: stages.load(workdir / stage) for stage in STAGES}
  gallery = layout.gallery(workdir, "test")
  fast = {"fast": loaded["distill"].fast_contract}
  slow = {"slow": loaded["slow"].slow_contract}
  return Made(
    workdir,
    loaded,
    corpus.load(gallery.vectors, fast),
    memories.Memories(gallery.memories, slow),
    index.load(gallery.index, fast),
    source,
  )


@pytest.fixture(scope="module")
def first(trained):
  cfg = cfg_of("fast", trained.parent / "data")
  return opened(trained, sources.open_split(cfg.data, "test"))


@pytest.fixture(scope="module")
def second(tmp_path_factory):
  folder = tmp_path_factory.mktemp("second")
  workdir, data = epath.Path(folder / "W"), folder / "data"
  one = jax.devices()[:1]
  with mock.patch.object(jax, "devices", return_value=one):
    for stage in STAGES:
      train.train(cfg_of(stage, data), workdir, validation.quick_recall)
      if stage == "slow":
        weigh.weigh(workdir, "fast", "slow")
    weigh.weigh(workdir, "distill", "slow")
    source = sources.open_split(cfg_of("fast", data).data, "test")
    fast = stages.load(workdir / "distill")
    gallery = layout.gallery(workdir, "test")
    made = encode.write_vectors(fast, source, gallery.vectors)
    encode.write_items(source, gallery.items)
    encode.write_memories(
      stages.load(workdir / "slow"), source, gallery.memories
    )
    parts = encode.make_contract(fast, source)
    index.build(made, gallery.index, parts)
  return opened(workdir, source)


@pytest.mark.bitwise
def test_parameters_are_equal_bit_for_bit(first, second):
  for stage in STAGES:
    a, b = first.runs[stage], second.runs[stage]
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert a.tokenizer.hash == b.tokenizer.hash
    assert a.step == b.step == a.cfg.train.steps
  for stage in ("fast", "distill"):
    assert first.runs[stage].fast_contract == second.runs[stage].fast_contract
  digests = {
    first.runs[stage].fast_contract["digest"] for stage in ("fast", "distill")
  }
  assert len(digests) == 2  # distilling learned something
  contracts = (x.runs["slow"].slow_contract for x in (first, second))
  assert next(contracts) == next(contracts)


@pytest.mark.bitwise
def test_metrics_are_equal_but_for_the_clock(first, second):
  for stage in STAGES:
    a, b = (
      [
        {k: v for k, v in line.items() if k not in CLOCK}
        for line in journal.read(made.workdir / stage)
      ]
      for made in (first, second)
    )
    assert a == b
    assert a and all(np.isfinite(line["loss"]) for line in a if "loss" in line)


@pytest.mark.bitwise
def test_what_was_fitted_and_mined_is_equal(first, second):
  for stage in ("slow", "distill"):
    a, b = (
      json.loads((made.workdir / stage / "fit.json").read_text())
      for made in (first, second)
    )
    assert a == b
  for name in ("visual.npy", "text.npy"):
    a, b = (
      np.load(made.workdir / "distill" / "clusters" / name)
      for made in (first, second)
    )
    np.testing.assert_array_equal(a, b)


@pytest.mark.bitwise
def test_galleries_are_equal(first, second):
  assert first.corpus.ids == second.corpus.ids == first.index.ids
  np.testing.assert_array_equal(first.corpus.vectors, second.corpus.vectors)
  rows = np.arange(len(first.memories))
  jax.tree.map(
    np.testing.assert_array_equal,
    first.memories.read(rows),
    second.memories.read(rows),
  )


def test_a_stage_starts_where_another_ended(second):
  """Slow's tower is where Fast's was, but for what a few steps move."""
  fast, slow = (second.runs[stage] for stage in ("fast", "slow"))
  task = tasks.make(slow.cfg, slow.tokenizer.vocab_size)
  fresh = task.init(jax.random.key(slow.cfg.seed))["slow"]
  start = fast.params["fast"]["vision"]
  moved, apart = (
    np.sqrt(
      sum(
        float(((a - b) ** 2).sum())
        for a, b in zip(
          jax.tree.leaves(tower["encoder"]["vision"]),
          jax.tree.leaves(start),
          strict=True,
        )
      )
    )
    for tower in (slow.params["slow"], fresh)
  )
  assert 0 < moved < 0.5 * apart


@pytest.fixture(scope="module")
def queries(second):
  return [second.source.captions(i)[0] for i in (0, 3, 5)]


@pytest.fixture(scope="module")
def search(second):
  return searcher.open(second.workdir)


def test_answers_are_what_the_parts_say(second, queries, search):
  answers = search.search(queries, k=4, rerank=6)
  fast, weights = second.runs["distill"], search.judge.weights
  text = fast.tokenizer.encode(queries)
  dots = encode.encode_texts(fast, text) @ second.corpus.vectors.T
  near = np.argsort(-dots, axis=1, kind="stable")[:, :6]
  for answer, rows in zip(answers, near, strict=True):
    assert answer.fast_rows == tuple(rows)
    assert answer.unknown == ()
    assert list(answer.stages_ms) == ["encode", "search", "rerank"]
  n = rerank.count_targets(text)[:, None]
  both = search.scorer(text, near) / n**weights.gamma
  both = both + weights.beta * np.take_along_axis(dots, near, axis=1)
  order = np.argsort(-both, axis=1, kind="stable")[:, :4]
  best = np.take_along_axis(near, order, axis=1)
  for answer, rows in zip(answers, best, strict=True):
    assert [hit.row for hit in answer.hits] == list(rows)
    for hit in answer.hits:
      assert hit.id == second.source.ids[hit.row]
      assert hit.item.captions == second.source.captions(hit.row)


def test_an_answer_does_not_depend_on_who_else_asks(queries, search):
  together = search.search(queries, k=4, rerank=6)
  for query, among in zip(queries, together, strict=True):
    alone = search(query, k=4, rerank=6)
    assert [hit.row for hit in alone.hits] == [hit.row for hit in among.hits]
    np.testing.assert_allclose(
      [hit.score for hit in alone.hits],
      [hit.score for hit in among.hits],
      rtol=1e-4,
      atol=1e-4,
    )


def test_without_reranking_fast_answers(queries, search):
  for answer in search.search(queries, k=4, rerank=0):
    assert tuple(hit.row for hit in answer.hits) == answer.fast_rows[:4]
    assert "rerank" not in answer.stages_ms


def test_what_is_shown_are_the_pictures_themselves(second, search):
  (seen,) = search.pictures([3])
  np.testing.assert_array_equal(seen, second.source.visuals([3])[0])
