"""Rankers turn token rows into Candidates, all with one protocol.

An evaluation cannot tell one from another. Each keeps `stages_ms`, the wall
time per query of its last call, by stage.
"""

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from jaxtyping import Int

from fs_jax import types
from fs_jax.gallery import encode, exact
from fs_jax.machine import compile_cache, console
from fs_jax.runs import stages
from fs_jax.search import fusion, rerank, scorer

Text = Int[np.ndarray, "Q L"]
PATIENCE = 5.0  # seconds of ranking by Slow before progress is shown


class Ranker(Protocol):
  """Anything that answers queries."""

  stages_ms: dict[str, float]

  def warm(self, text: Text) -> None:
    """Compiles all that answering these queries needs, as cheaply as it can."""

  def __call__(self, text: Text) -> types.Candidates:
    """Answers queries, best candidates first."""


def time_answers(
  ranker: Ranker, text: Text
) -> tuple[types.Candidates, dict[str, float]]:
  """Answers queries, timed without compilation.

  Returns:
    The candidates, and the milliseconds per query of each stage.

  Raises:
    RuntimeError: the ranker's `warm` left something to compile.
  """
  ranker.warm(text)
  with compile_cache.timed(f"{len(text)} queries to {type(ranker).__name__}"):
    candidates = ranker(text)
  return candidates, dict(ranker.stages_ms)


class Fast:
  """Encodes queries and searches the index.

  Args:
    encode_text: token rows -> vectors, by the Fast whose vectors are indexed.
    index: the gallery's index.
    depth: candidates per query.
  """

  def __init__(
    self,
    encode_text: Callable[[Text], np.ndarray],
    index: exact.Index,
    depth: int = 100,
  ):
    self._encode = encode_text
    self._index = index
    self._depth = min(depth, index.size)
    self.stages_ms: dict[str, float] = {}

  def warm(self, text: Text) -> None:
    self(text)  # answering is cheap

  def __call__(self, text: Text) -> types.Candidates:
    clock = Clock(len(text))
    vectors = self._encode(text)
    clock.lap("encode")
    candidates = self._index.search(vectors, self._depth)
    clock.lap("search")
    self.stages_ms = clock.laps
    return candidates


class Reranker:
  """Orders another ranker's best k by Slow and Fast together.

  Args:
    base: the ranker that finds candidates, at least k per query.
    scorer: Slow over the same gallery.
    weights: how Slow weighs beside the base.
    k: candidates that Slow scores; the others stay behind them.
  """

  def __init__(
    self, base: Ranker, scorer: scorer.Scorer, weights: fusion.Weights, k: int
  ):
    self._base, self._scorer, self._k = base, scorer, k
    self._weights = weights
    self.stages_ms: dict[str, float] = {}

  def warm(self, text: Text) -> None:
    self._base.warm(text)
    count = self._base(text[:1]).rows.shape[1]
    self._scorer.warm(self._scorer.list_shapes(text, min(self._k, count)))

  def __call__(self, text: Text) -> types.Candidates:
    return self.order(text, self._base(text))

  def order(self, text: Text, candidates: types.Candidates) -> types.Candidates:
    """Orders what the base just found for the same queries."""
    clock = Clock(len(text))
    rows = np.asarray(candidates.rows)[:, : self._k]
    with console.Bar("re-ranking", rows.size, patience=PATIENCE) as bar:
      h = self._scorer(text, rows, bar.advance)
    best = rerank.rerank(
      candidates, h, rerank.count_targets(text), self._weights
    )
    clock.lap("rerank")
    self.stages_ms = self._base.stages_ms | clock.laps
    return best


class Slow:
  """Scores the whole gallery with Slow: the cost that re-ranking avoids.

  Args:
    scorer: Slow over the gallery.
    depth: candidates per query.
  """

  def __init__(self, scorer: scorer.Scorer, depth: int = 100):
    self._scorer, self._depth = scorer, min(depth, len(scorer))
    self.stages_ms: dict[str, float] = {}

  def warm(self, text: Text) -> None:
    self._scorer.warm(self._scorer.list_shapes(text))

  def __call__(self, text: Text) -> types.Candidates:
    clock = Clock(len(text))
    pairs = len(text) * len(self._scorer)
    with console.Bar("Slow ranks all", pairs, patience=PATIENCE) as bar:
      h = self._scorer.score_all(text, bar.advance)
    order = np.argsort(-h, axis=1, kind="stable")[:, : self._depth]
    candidates = types.Candidates(
      order.astype(np.int32), np.take_along_axis(h, order, axis=1)
    )
    clock.lap("score")
    self.stages_ms = clock.laps
    return candidates


def score_groups_with_fast(
  run: stages.Run, vectors: np.ndarray, text: Text, groups: np.ndarray
) -> types.Candidates:
  """Scores each query's own group with Fast.

  Args:
    run: a trained Fast.
    vectors: float32 [C,E] of the gallery.
    text: the queries.
    groups: int32 [Q,G], the rows of each query's group; -1 pads.

  Returns:
    The rows in the order given, with their scores f·g.
  """
  queries = encode.encode_texts(run, text)
  dots = np.einsum("qe,qge->qg", queries, vectors[np.maximum(groups, 0)])
  scores = np.where(groups >= 0, dots, -np.inf)
  return types.Candidates(groups, scores.astype(np.float32))


def rerank_groups(
  fast: types.Candidates,
  scorer: scorer.Scorer,
  weights: fusion.Weights,
  text: Text,
) -> types.Candidates:
  """Scores the same groups by u + beta f·g; rows stay in the order given."""
  rows, dots = np.asarray(fast.rows), np.asarray(fast.scores)
  h = scorer(text, rows)
  u = fusion.per_target(h, rerank.count_targets(text), weights.gamma)
  here = rows >= 0
  scores = np.where(here, u + weights.beta * np.where(here, dots, 0), -np.inf)
  return types.Candidates(rows, scores.astype(np.float32))


def score_groups_with_slow(
  scorer: scorer.Scorer, text: Text, groups: np.ndarray
) -> types.Candidates:
  """Scores each query's own group with Slow: h of rows [Q,G], -1 pads."""
  return types.Candidates(groups, scorer(text, groups))


class Clock:
  """Measures laps of wall time, in milliseconds per query."""

  def __init__(self, queries: int = 1) -> None:
    self.laps: dict[str, float] = {}
    self._queries = max(queries, 1)
    self._last = time.perf_counter()

  def lap(self, name: str) -> None:
    """Ends a lap and stores its time under a name."""
    now = time.perf_counter()
    self.laps[name] = 1e3 * (now - self._last) / self._queries
    self._last = now
