"""Queries to show, with their first answers.

Chooses some queries by chance, then the extremes, which are labelled as such.
The HTML around them is left to `page`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fs_jax import types

SHOWN = 5  # answers of each list, side by side
EXTREMES = 3  # queries that re-ranking hurt most, and as many that it helped
DRAWN = "drawn by chance"


class Choice(NamedTuple):
  """A query to show, and the reason."""

  query: int
  reason: str
  before: int | None  # rank of the true picture, from 1; None = not listed
  after: int | None


class Answer(NamedTuple):
  """A picture of a list."""

  picture: np.ndarray  # uint8 [T,H,W,3]
  true: bool  # whether the query was written for it
  score: float | None = None


class Case(NamedTuple):
  """A query with the first answers of both lists."""

  text: str
  reason: str
  before: int | None
  after: int | None
  true: (
    np.ndarray
  )  # uint8 [T,H,W,3]: the picture that the query was written for
  fast: tuple[Answer, ...]
  final: tuple[Answer, ...]


def choose_cases(
  fast: types.Candidates,
  final: types.Candidates,
  positives: Int[np.ndarray, "Q P"],
  count: int = 12,
  seed: int = 0,
) -> list[Choice]:
  """Chooses queries to show: some by chance, then the extremes, labelled so.

  First come `count` queries of a seeded shuffle. Then come, of all queries, the
  three whose rank grew by the largest factor between the lists and the three
  whose rank shrank by the largest; a positive that is not listed counts as one
  past the list's end. A query that is both comes once, with both reasons.

  Args:
    fast: the lists before re-ranking.
    final: the same queries' lists after it.
    positives: rows that answer each query; -1 pads.
    count: queries to draw.
    seed: the shuffle's seed.
  """
  before, after = _ranks(fast.rows, positives), _ranks(final.rows, positives)
  order = np.random.default_rng(seed).permutation(len(before))
  ends = [np.asarray(lists.rows).shape[1] + 1 for lists in (fast, final)]
  ratio = np.log(np.where(after > 0, after, ends[1]))
  ratio -= np.log(np.where(before > 0, before, ends[0]))

  def choice(query: int, reason: str) -> Choice:
    ranks = (int(before[query]) or None, int(after[query]) or None)
    return Choice(int(query), reason, *ranks)

  rising = order[np.argsort(ratio[order], kind="stable")]
  hurt = [q for q in rising[::-1][:EXTREMES] if ratio[q] > 0]
  helped = [q for q in rising[:EXTREMES] if ratio[q] < 0]
  extremes = {int(q): "re-ranking hurt most" for q in hurt}
  extremes |= {int(q): "re-ranking helped most" for q in helped}
  drawn = [int(q) for q in order[:count]]
  choices = [
    choice(q, f"{DRAWN}; also: {extremes[q]}" if q in extremes else DRAWN)
    for q in drawn
  ]
  choices += [
    choice(q, f"picked: {reason}")
    for q, reason in extremes.items()
    if q not in drawn
  ]
  return choices


def show_cases(
  choices: Sequence[Choice],
  texts: Sequence[str],
  fast: types.Candidates,
  final: types.Candidates,
  positives: Int[np.ndarray, "Q P"],
  visuals: Callable[[Sequence[int]], np.ndarray],
) -> list[Case]:
  """Adds the pictures to choices; `visuals` is `Source.visuals`."""
  cases = []
  for choice in choices:
    true = [int(row) for row in positives[choice.query] if row >= 0]
    lists = []
    for candidates in (fast, final):
      rows = [int(r) for r in candidates.rows[choice.query][:SHOWN] if r >= 0]
      scores = candidates.scores[choice.query][: len(rows)]  # padding is last
      pictures = visuals(rows) if rows else ()
      lists.append(
        tuple(
          Answer(picture, row in true, float(score))
          for picture, row, score in zip(pictures, rows, scores, strict=True)
        )
      )
    cases.append(
      Case(
        texts[choice.query],
        choice.reason,
        choice.before,
        choice.after,
        visuals(true[:1])[0],
        *lists,
      )
    )
  return cases


def _ranks(rows: Any, positives: Int[np.ndarray, "Q P"]) -> np.ndarray:
  """Rank of the first positive of each list, from 1; 0 = none listed."""
  rows, positives = np.asarray(rows), np.asarray(positives)
  hit = (rows[:, :, None] == positives[:, None]) & (rows[:, :, None] >= 0)
  hit = hit.any(axis=2)
  return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)
