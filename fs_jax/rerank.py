"""Slow as a ranker: scores candidates that Fast found, from stored memories.

One jitted function over padded queries x candidates. A query's words are read
once; each candidate costs the decoder's crossed layers over its memory.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fs_jax import calibrate, runs, store, tasks, types
from fs_jax.models import slow as slow_models
from fs_jax.models.text import PAD

# Scored at once: a working set that fits caches and keeps a TPU fed.
PAIRS = 256
# Texts are cut to a multiple of this many tokens: most are much shorter than
# the longest, and padding costs as much as words.
LENGTHS = 4


class Scorer:
  """h(x, y) of any (gallery row, text) pairs, nats.

  Args:
    run: a trained Slow.
    memories: of the gallery, encoded by the same parameters.
    pairs: scored at once; bounds memory.
  """

  def __init__(
    self, run: runs.Run, memories: store.Store, *, pairs: int = PAIRS
  ):
    self._run, self._store, self._pairs = run, memories, pairs
    model = tasks.slow_model(run.cfg, run.tokenizer.vocab_size)
    self._score = jax.jit(functools.partial(score_pairs, model))

  def __len__(self) -> int:
    return len(self._store)

  def __call__(
    self, text: Int[np.ndarray, "Q L"], rows: Int[np.ndarray, "Q K"]
  ) -> Float[np.ndarray, "Q K"]:
    """Log-likelihoods; -inf where a row is -1.

    Shapes on the device come from K, a few lengths and a few numbers of
    queries, so that any number of queries compiles a handful of times.
    """
    text, rows = np.asarray(text, np.int32), np.asarray(rows)
    h = np.empty(rows.shape, np.float32)
    at_once = max(self._pairs // max(rows.shape[1], 1), 1)
    waiting: list[tuple[np.ndarray, slice, jax.Array]] = []
    for queries, columns, length in _blocks(
      cut_lengths(text), rows.shape[1], at_once, self._pairs
    ):
      size = min(_power_of_two(len(queries)), at_once)
      # The last query again, as often as a block lacks some.
      filled = np.pad(queries, (0, size - len(queries)), mode="edge")
      memory = self._store.read(rows[filled, columns].reshape(-1))
      words = text[filled, :length]
      out = self._score(self._run.params["slow"], memory, words)
      waiting.append((queries, columns, out))
      if len(waiting) > 1:  # gather the next block while this one computes
        _take(h, *waiting.pop(0))
    for done in waiting:
      _take(h, *done)
    return np.where(rows >= 0, h, -np.inf)


def cut_lengths(text: Int[np.ndarray, "Q L"]) -> Int[np.ndarray, " Q"]:
  """Tokens of each text that Slow is given: padding beyond them is cut off."""
  used = (np.asarray(text) != PAD).sum(axis=1)
  cut = -(-np.maximum(used, 1) // LENGTHS) * LENGTHS
  return np.minimum(cut, text.shape[1])


def score_pairs(
  model: slow_models.Slow,
  params: types.Params,
  memory: types.Memory,
  text: types.Array,
) -> Float[jax.Array, "Q K"]:
  """Scores of Q texts [Q,L], each against its own K memories [Q*K,...]."""
  queries = text.shape[0]
  k = memory.levels[0].mask.shape[0] // queries
  states = tasks.apply(model, params, text, method="read")
  each = jnp.repeat(states, k, axis=0)[:, None]
  words = jnp.repeat(text, k, axis=0)[:, None]
  h = tasks.apply(model, params, memory, each, words, method="score")
  return h.reshape(queries, k)


def rerank(
  found: types.Candidates,
  h: Float[np.ndarray, "Q K"],
  n: Float[np.ndarray, " Q"],
  fit: calibrate.Fit,
) -> types.Candidates:
  """The first K candidates ordered by u + beta f.g, the others behind them.

  Args:
    found: Fast's answer, best first, its scores f.g; at least K a query.
    h: Slow's scores of the first K.
    n: targets of each text.
    fit: gamma and beta.

  Returns:
    As many candidates as came. Those beyond K keep Fast's order, with scores
    below all that were re-ranked; equal scores keep Fast's order.
  """
  rows, dots = np.asarray(found.rows), np.asarray(found.scores)
  k = h.shape[1]
  here = rows[:, :k] >= 0
  u = h / np.maximum(n, 1)[:, None] ** fit.gamma
  score = np.where(here, u + fit.beta * np.where(here, dots[:, :k], 0), -np.inf)
  order = np.argsort(-score, axis=1, kind="stable")
  head = np.take_along_axis(score, order, axis=1).astype(np.float32)
  first = np.take_along_axis(rows[:, :k], order, axis=1)
  if rows.shape[1] == k:
    return types.Candidates(first, head)
  lowest = np.where(here, score, np.inf).min(axis=1, keepdims=True)
  # Whole steps: Fast's small differences would round to ties beside `lowest`.
  falls = (dots[:, k:] < dots[:, k - 1 : -1]).astype(np.float32)
  falls[:, 0] = 1
  tail = lowest - falls.cumsum(axis=1)
  tail = np.where(rows[:, k:] >= 0, tail, -np.inf)
  return types.Candidates(
    np.concatenate([first, rows[:, k:]], axis=1),
    np.concatenate([head, tail.astype(np.float32)], axis=1),
  )


def targets(text: Int[np.ndarray, "Q L"]) -> Float[np.ndarray, " Q"]:
  """n of each text: targets of both directions, EOS included."""
  return np.asarray(slow_models.targets_of(jnp.asarray(text)))


def _blocks(
  lengths: np.ndarray, k: int, at_once: int, pairs: int
) -> Iterator[tuple[np.ndarray, slice, int]]:
  """(queries of one length, columns, that length)."""
  for length in np.unique(lengths):
    alike = np.flatnonzero(lengths == length)
    for q in range(0, len(alike), at_once):
      for start in range(0, k, pairs):
        stop = min(start + pairs, k)
        yield alike[q : q + at_once], slice(start, stop), int(length)


def _power_of_two(n: int) -> int:
  return 1 << max(n - 1, 0).bit_length()


def _take(
  h: np.ndarray, queries: np.ndarray, columns: slice, out: jax.Array
) -> None:
  h[queries, columns] = np.asarray(out)[: len(queries)]
