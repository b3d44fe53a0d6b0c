"""A question to an answer: encode, search, re-rank, and the time of each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fs_jax import types
from fs_jax.gallery import encode, exact
from fs_jax.machine import compile_cache
from fs_jax.runs import stages
from fs_jax.search import fusion, rankers, rerank, scorer

MOST = 256  # candidates that `Retriever.warm` prepares for


class Answer(NamedTuple):
  """What came back for Q queries."""

  fast: types.Candidates  # Fast's order, scores f.g; all that was looked at
  final: types.Candidates  # the k answers, re-ranked if there is a re-ranker
  unknown: tuple[tuple[str, ...], ...]  # words of each query nobody taught
  stages_ms: dict[str, float]  # wall time of all queries together


class Retriever:
  """Fast over an index, Slow over its best.

  Args:
    fast: the run whose vectors the index holds.
    gallery: the index.
    scorer: Slow over the same gallery, or None for Fast alone.
    fit: how to weigh the two; needed with a scorer.
  """

  def __init__(
    self,
    fast: stages.Run,
    gallery: exact.Index,
    scorer: scorer.Scorer | None = None,
    fit: fusion.Fit | None = None,
  ):
    self._fast, self._gallery = fast, gallery
    self._scorer, self._fit = scorer, fit
    self._encode = encode.text_encoder(fast)

  def warm(self, k: int = MOST) -> float:
    """Compiles all that answers can need; returns the seconds it took.

    After it no query waits for a compiler, whatever its words, however many
    come at once, and for up to `k` answers or candidates each.
    """
    length = self._fast.cfg.tokens.length
    with compile_cache.counting() as count:
      for rows in encode.TEXTS:
        self._encode(np.zeros((rows, length), np.int32))
      self._gallery.warm(min(k, self._gallery.size))
      if self._scorer is not None:
        self._scorer.warm()
    return count.elapsed

  def __call__(
    self, queries: Sequence[str], *, k: int = 10, rerank_k: int = 20
  ) -> Answer:
    """Answers queries.

    Args:
      queries: what people type.
      k: answers wanted.
      rerank_k: candidates that Slow looks at; 0 = none.

    Raises:
      ValueError: a query without a known word, or too long a one.
    """
    tokenizer = self._fast.tokenizer
    unknown = tuple(tuple(tokenizer.check_query(q)) for q in queries)
    text = tokenizer.encode(list(queries))
    clock = rankers.Clock()
    vectors = self._encode(text)
    clock.lap("encode")
    size = min(max(k, rerank_k), self._gallery.size)
    fast = self._gallery.search(vectors, size)
    clock.lap("search")
    final = fast
    rerank_k = min(rerank_k, size)
    if self._scorer is not None and self._fit is not None and rerank_k:
      h = self._scorer(text, np.asarray(fast.rows)[:, :rerank_k])
      final = rerank.rerank(fast, h, rerank.targets(text), self._fit)
      clock.lap("rerank")
    return Answer(fast, _first(final, k), unknown, clock.laps)


def _first(found: types.Candidates, k: int) -> types.Candidates:
  return types.Candidates(found.rows[:, :k], found.scores[:, :k])
