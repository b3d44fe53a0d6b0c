"""What a running searcher makes its users wait, at first and later.

Over a trained workdir, on the code path of `launch.search`. Two searchers
answer the same batches, one that was not warmed and one that was.
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
LISTS = ((1, 10), (24, 50))  # queries and candidates that padding is timed at


class Served(NamedTuple):
  """A workdir's gallery, and what it is asked."""

  search: searcher.Searcher
  texts: tuple[str, ...]  # captions of the gallery, as queries


class Wait(NamedTuple):
  """Of a batch of queries."""

  first_ms: float
  programs: int  # compiled in the first call
  later_ms: float  # median


class Batch(NamedTuple):
  """What a searcher makes a batch wait, and one that was warmed."""

  queries: int
  cold: Wait
  warm: Wait


def serve(where: epath.PathLike, split: str) -> Served:
  """A trained workdir's searcher.

  Raises:
    ValueError: no trained stage or no index there.
  """
  search = searcher.open(where, split)
  rows = np.random.default_rng(0).permutation(len(search))
  texts = (search.items[int(i)].caption for i in rows)
  return Served(search, tuple(texts))


def warm_up(made: Served) -> dict[str, float]:
  """What the `warm` of a first searcher takes."""
  jax.clear_caches()
  search = made.search
  with compile_cache.counting() as count:
    seconds = search.warm()
  return {"warm_seconds": seconds, "warm_programs": count.programs}


def waits(
  made: Served, sizes: Iterable[int], later: int = LATER
) -> Iterator[Batch]:
  """Batch by batch, of a searcher that was not warmed, then of one that was."""
  rng = np.random.default_rng(1)
  asked = [
    [made.texts[i] for i in rng.integers(len(made.texts), size=size)]
    for size in sizes
  ]
  jax.clear_caches()
  search = made.search
  cold = [_wait(search, some, later) for some in asked]
  search.warm()
  for some, before in zip(asked, cold, strict=True):
    yield Batch(len(some), before, _wait(search, some, later))


def _wait(search: searcher.Searcher, asked: Sequence[str], later: int) -> Wait:
  def ask() -> list[searcher.Answer]:
    return search.search(asked, rerank=RERANKED)

  with compile_cache.counting() as first:
    ask()
  again = timing.median_seconds(ask, later, name=f"{len(asked)} queries")
  return Wait(1e3 * first.elapsed, first.programs, 1e3 * again)


def padding(
  made: Served, queries: int, k: int, calls: int = timing.RUNS
) -> dict[str, float]:
  """Time of judging lists in padded blocks, as a multiple of their own shapes.

  Both take turns. `apart` is the largest difference of the scores, relative.
  """
  judge, scorer = made.search.judge, made.search.scorer
  assert judge and scorer  # `serve` opens them
  slow, memories = judge.run, judge.memories
  text = slow.tokenizer.encode(list(made.texts[:queries]))
  rng = np.random.default_rng(2)
  rows = rng.integers(len(memories), size=(queries, k))
  exact = _exact(slow, memories, text, rows)

  def padded() -> np.ndarray:
    return scorer(text, rows)

  ways = (padded, exact)
  found = [way() for way in ways]
  seconds: list[list[float]] = [[], []]
  for _ in range(calls):
    for way, spent in zip(ways, seconds, strict=True):
      with compile_cache.timed(f"{queries} queries of {k}") as region:
        way()
      spent.append(region.elapsed)
  middle, of_exact = map(statistics.median, seconds)
  return {
    "queries": queries,
    "k": k,
    "padded_ms": 1e3 * middle,
    "exact_ms": 1e3 * of_exact,
    "ratio": middle / of_exact,
    "apart": float(np.abs(found[0] / found[1] - 1).max()),
  }


def _exact(
  slow: stages.Run,
  memories: memories.Memories,
  text: np.ndarray,
  rows: np.ndarray,
) -> Callable[[], np.ndarray]:
  """The same scores in blocks as large as their pairs are many."""
  model = build.slow_model(slow.cfg, slow.tokenizer.vocab_size)
  score = jax.jit(functools.partial(scorer.score_pairs, model))
  lengths = scorer.cut_lengths(text)
  blocks = []
  for length in np.unique(lengths):
    at = np.argwhere((lengths == length)[:, None] & (rows >= 0))
    for start in range(0, len(at), scorer.PAIRS):
      queries, columns = at[start : start + scorer.PAIRS].T
      blocks.append((length, queries, columns))

  def run() -> np.ndarray:
    h = np.empty(rows.shape, np.float32)
    outs = []
    for length, queries, columns in blocks:
      some, which = np.unique(queries, return_inverse=True)
      memory = memories.read(rows[queries, columns])
      words, which = text[some, :length], which.astype(np.int32)
      outs.append(score(slow.params["slow"], memory, words, which))
    for (_, queries, columns), out in zip(blocks, outs, strict=True):
      h[queries, columns] = np.asarray(out)
    return h

  return run


def head() -> str:
  """Over the lines of `line`."""
  return (
    f"{'':>7} {'not warmed: first':>22} {'later':>9} "
    f"{'warmed: first':>22} {'later':>9}\n"
    f"{'queries':>7} {'ms (programs)':>22} {'ms':>9} "
    f"{'ms (programs)':>22} {'ms':>9}"
  )


def line(row: Batch) -> str:
  """What a batch of queries waits for."""
  said = f"{row.queries:>7}"
  for wait in row[1:]:
    first = f"{wait.first_ms:.1f} ({wait.programs})"
    said += f" {first:>22} {wait.later_ms:>9.1f}"
  return said
