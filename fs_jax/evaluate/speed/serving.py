"""How long users wait for a running searcher, at first and later.

It searches a trained workdir on the code path of `launch.search`. Two searchers
answer the same batches: one that was not warmed and one that was.
"""

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from fs_jax.evaluate.speed import timing
from fs_jax.gallery import memories
from fs_jax.machine import compile_cache
from fs_jax.models import build
from fs_jax.runs import stages
from fs_jax.search import scorer, searcher

RERANKED = 20  # candidates a query, as launch.search
LATER = 5  # calls of each batch after its first
LISTS = ((1, 10), (24, 50))  # (queries, candidates) at which padding is timed


class Served(NamedTuple):
  """A workdir's searcher, and queries for it."""

  search: searcher.Searcher
  texts: tuple[str, ...]  # captions of the gallery


class Wait(NamedTuple):
  """The time that a searcher takes for a batch of queries."""

  first_ms: float
  programs: int  # compiled in the first call
  later_ms: float  # median


class Batch(NamedTuple):
  """The waits for one batch, before and after warming."""

  queries: int
  cold: Wait
  warm: Wait


def open_workdir(workdir: epath.PathLike, split: str) -> Served:
  """Opens a trained workdir, with its gallery's captions as queries.

  Raises:
    ValueError: the workdir has no trained stage or no index.
  """
  search = searcher.open(workdir, split)
  rows = np.random.default_rng(0).permutation(len(search))
  texts = (search.items[int(i)].caption for i in rows)
  return Served(search, tuple(texts))


def warm_up(served: Served) -> dict[str, float]:
  """Warms a searcher from empty caches: seconds, and programs compiled."""
  jax.clear_caches()
  search = served.search
  with compile_cache.counting() as count:
    seconds = search.warm()
  return {"warm_seconds": seconds, "warm_programs": count.programs}


def measure_waits(
  served: Served, sizes: Iterable[int], later: int = LATER
) -> Iterator[Batch]:
  """Times all batches before the searcher is warmed, then each one after."""
  rng = np.random.default_rng(1)
  batches = [
    [served.texts[i] for i in rng.integers(len(served.texts), size=size)]
    for size in sizes
  ]
  jax.clear_caches()
  search = served.search
  cold = [_measure_wait(search, texts, later) for texts in batches]
  search.warm()
  for texts, wait in zip(batches, cold, strict=True):
    yield Batch(len(texts), wait, _measure_wait(search, texts, later))


def _measure_wait(
  search: searcher.Searcher, texts: Sequence[str], later: int
) -> Wait:
  def ask() -> list[searcher.Answer]:
    return search.search(texts, rerank=RERANKED)

  with compile_cache.counting() as first:
    ask()
  again = timing.median_seconds(ask, later, name=f"{len(texts)} queries")
  return Wait(1e3 * first.elapsed, first.programs, 1e3 * again)


def measure_padding(
  served: Served, queries: int, k: int, calls: int = timing.RUNS
) -> dict[str, float]:
  """Times scoring in padded blocks against scoring in blocks of exact size.

  Both take turns. `apart` is the largest relative difference of the scores.
  """
  judge, scorer = served.search.judge, served.search.scorer
  assert judge and scorer  # `open_workdir` opens them
  slow, memories = judge.run, judge.memories
  text = slow.tokenizer.encode(list(served.texts[:queries]))
  rng = np.random.default_rng(2)
  rows = rng.integers(len(memories), size=(queries, k))
  score_exact = _exact_scorer(slow, memories, text, rows)

  def score_padded() -> np.ndarray:
    return scorer(text, rows)

  variants = (score_padded, score_exact)
  scores = [score() for score in variants]
  times: list[list[float]] = [[], []]
  for _ in range(calls):
    for score, seconds in zip(variants, times, strict=True):
      with compile_cache.timed(f"{queries} queries of {k}") as region:
        score()
      seconds.append(region.elapsed)
  padded, exact = map(statistics.median, times)
  return {
    "queries": queries,
    "k": k,
    "padded_ms": 1e3 * padded,
    "exact_ms": 1e3 * exact,
    "ratio": padded / exact,
    "apart": float(np.abs(scores[0] / scores[1] - 1).max()),
  }


def _exact_scorer(
  slow: stages.Run,
  memories: memories.Memories,
  text: np.ndarray,
  rows: np.ndarray,
) -> Callable[[], np.ndarray]:
  """Scores the same pairs in blocks that are not padded."""
  model = build.slow_model(slow.cfg, slow.tokenizer.vocab_size)
  score = jax.jit(functools.partial(scorer.score_pairs, model))
  lengths = scorer.cut_lengths(text)
  blocks = []
  for length in np.unique(lengths):
    pairs = np.argwhere((lengths == length)[:, None] & (rows >= 0))
    for start in range(0, len(pairs), scorer.PAIRS):
      queries, columns = pairs[start : start + scorer.PAIRS].T
      blocks.append((length, queries, columns))

  def run() -> np.ndarray:
    h = np.empty(rows.shape, np.float32)
    outs = []
    for length, queries, columns in blocks:
      unique, which = np.unique(queries, return_inverse=True)
      memory = memories.read(rows[queries, columns])
      words, which = text[unique, :length], which.astype(np.int32)
      outs.append(score(slow.params["slow"], memory, words, which))
    for (_, queries, columns), out in zip(blocks, outs, strict=True):
      h[queries, columns] = np.asarray(out)
    return h

  return run


def format_head() -> str:
  """The header of the lines of `format_line`."""
  return (
    f"{'':>7} {'not warmed: first':>22} {'later':>9} "
    f"{'warmed: first':>22} {'later':>9}\n"
    f"{'queries':>7} {'ms (programs)':>22} {'ms':>9} "
    f"{'ms (programs)':>22} {'ms':>9}"
  )


def format_line(row: Batch) -> str:
  """The waits for a batch, as a line of a table."""
  text = f"{row.queries:>7}"
  for wait in (row.cold, row.warm):
    first = f"{wait.first_ms:.1f} ({wait.programs})"
    text += f" {first:>22} {wait.later_ms:>9.1f}"
  return text
