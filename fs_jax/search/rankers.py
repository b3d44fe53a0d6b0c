"""Rankers: token rows to Candidates. Whoever judges them cannot know which.

Each keeps `stages_ms`, wall time per query of its last call by stage.
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
PATIENCE = 5.0  # seconds that Slow ranks before it says how far it is


class Ranker(Protocol):
  """Anything that answers queries."""

  stages_ms: dict[str, float]

  def warm(self, text: Text) -> None:
    """Compiles all that answering these queries needs, as cheaply as it can."""

  def __call__(self, text: Text) -> types.Candidates: ...


def timed(
  ranker: Ranker, text: Text
) -> tuple[types.Candidates, dict[str, float]]:
  """Answers, and the ms a query of each stage, nothing of it compiling.

  Raises:
    RuntimeError: the ranker's `warm` left something to compile.
  """
  ranker.warm(text)
  with compile_cache.timed(f"{len(text)} queries to {type(ranker).__name__}"):
    found = ranker(text)
  return found, dict(ranker.stages_ms)


class Fast:
  """Encodes queries and searches the index.

  Args:
    encode_text: tokens to vectors, of the Fast whose vectors the index holds.
    index: of the gallery.
    depth: candidates a query.
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
    self(text)  # answers are cheap

  def __call__(self, text: Text) -> types.Candidates:
    clock = Clock(len(text))
    vectors = self._encode(text)
    clock.lap("encode")
    found = self._index.search(vectors, self._depth)
    clock.lap("search")
    self.stages_ms = clock.laps
    return found


class Reranked:
  """Another ranker's best k, ordered by Slow and Fast together.

  Args:
    base: gives at least k candidates.
    scorer: Slow over the same gallery.
    weights: of Slow beside the base.
    k: candidates that Slow looks at; the rest stay behind them.
  """

  def __init__(
    self, base: Ranker, scorer: scorer.Scorer, weights: fusion.Weights, k: int
  ):
    self._base, self._scorer, self._k = base, scorer, k
    self._weights = weights
    self.stages_ms: dict[str, float] = {}

  def warm(self, text: Text) -> None:
    self._base.warm(text)
    listed = self._base(text[:1]).rows.shape[1]
    self._scorer.warm(self._scorer.shapes(text, min(self._k, listed)))

  def __call__(self, text: Text) -> types.Candidates:
    return self.order(text, self._base(text))

  def order(self, text: Text, found: types.Candidates) -> types.Candidates:
    """What the base just found, in the order of both."""
    clock = Clock(len(text))
    rows = np.asarray(found.rows)[:, : self._k]
    with console.Bar("re-ranking", rows.size, patience=PATIENCE) as bar:
      h = self._scorer(text, rows, bar.advance)
    best = rerank.rerank(found, h, rerank.count_targets(text), self._weights)
    clock.lap("rerank")
    self.stages_ms = self._base.stages_ms | clock.laps
    return best


class Slow:
  """Scores the whole gallery: what re-ranking saves.

  Args:
    scorer: Slow over the gallery.
    depth: candidates returned.
  """

  def __init__(self, scorer: scorer.Scorer, depth: int = 100):
    self._scorer, self._depth = scorer, min(depth, len(scorer))
    self.stages_ms: dict[str, float] = {}

  def warm(self, text: Text) -> None:
    self._scorer.warm(self._scorer.shapes(text))

  def __call__(self, text: Text) -> types.Candidates:
    clock = Clock(len(text))
    pairs = len(text) * len(self._scorer)
    with console.Bar("Slow ranks all", pairs, patience=PATIENCE) as bar:
      h = self._scorer.everything(text, bar.advance)
    order = np.argsort(-h, axis=1, kind="stable")[:, : self._depth]
    found = types.Candidates(
      order.astype(np.int32), np.take_along_axis(h, order, axis=1)
    )
    clock.lap("score")
    self.stages_ms = clock.laps
    return found


def fast_in_group(
  run: stages.Run, vectors: np.ndarray, text: Text, groups: np.ndarray
) -> types.Candidates:
  """Fast's scores of each query's own group: int32 [Q,G], -1 pads."""
  queries = encode.text_vectors(run, text)
  dots = np.einsum("qe,qge->qg", queries, vectors[np.maximum(groups, 0)])
  scores = np.where(groups >= 0, dots, -np.inf)
  return types.Candidates(groups, scores.astype(np.float32))


def reranked_in_group(
  fast: types.Candidates,
  scorer: scorer.Scorer,
  weights: fusion.Weights,
  text: Text,
) -> types.Candidates:
  """u + beta f.g of the same groups; rows stay in the order they came."""
  rows, dots = np.asarray(fast.rows), np.asarray(fast.scores)
  h = scorer(text, rows)
  u = fusion.per_target(h, rerank.count_targets(text), weights.gamma)
  here = rows >= 0
  scores = np.where(here, u + weights.beta * np.where(here, dots, 0), -np.inf)
  return types.Candidates(rows, scores.astype(np.float32))


def slow_in_group(
  scorer: scorer.Scorer, text: Text, groups: np.ndarray
) -> types.Candidates:
  """h of each query's own group."""
  return types.Candidates(groups, scorer(text, groups))


class Clock:
  """Wall time between laps, ms per query."""

  def __init__(self, queries: int = 1) -> None:
    self.laps: dict[str, float] = {}
    self._queries = max(queries, 1)
    self._last = time.perf_counter()

  def lap(self, name: str) -> None:
    now = time.perf_counter()
    self.laps[name] = 1e3 * (now - self._last) / self._queries
    self._last = now
