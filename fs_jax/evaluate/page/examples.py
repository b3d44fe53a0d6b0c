"""Queries to show with their first answers, and a sheet of pictures.

Which queries is decided here: by chance first, then the extremes, said to be.
The HTML around them is left to `page`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fs_jax import types

SHOWN = 5  # answers of each list, side by side
EXTREMES = 3  # queries that re-ranking hurt most, and as many it helped most
DRAWN = "drawn by chance"


class Choice(NamedTuple):
  """A query to show, and why this one."""

  query: int
  why: str
  before: int | None  # rank of the true picture, from 1; None = not listed
  after: int | None


class Shown(NamedTuple):
  picture: np.ndarray  # uint8 [T,H,W,3]
  true: bool
  score: float | None = None


class Case(NamedTuple):
  """A query with the first answers of both lists."""

  text: str
  why: str
  before: int | None
  after: int | None
  true: np.ndarray  # uint8 [T,H,W,3]: the picture meant
  fast: tuple[Shown, ...]
  final: tuple[Shown, ...]


def choose_cases(
  fast: types.Candidates,
  final: types.Candidates,
  positives: Int[np.ndarray, "Q P"],
  count: int = 12,
  seed: int = 0,
) -> list[Choice]:
  """Queries to show: some that nobody picked, then the extremes, said to be.

  First `count` of a seeded shuffle. Then, of all queries, the three whose rank
  grew by the largest factor between the lists and the three where it shrank by
  the largest; what is not listed counts as one past the list's end. A query
  that is both drawn and extreme comes once and says both.

  Args:
    fast: before re-ranking.
    final: after it; the same queries.
    positives: rows that answer each query; -1 pads.
  """
  before, after = (_ranks(found.rows, positives) for found in (fast, final))
  order = np.random.default_rng(seed).permutation(len(before))
  ends = [np.asarray(found.rows).shape[1] + 1 for found in (fast, final)]
  ratio = np.log(np.where(after > 0, after, ends[1]))
  ratio -= np.log(np.where(before > 0, before, ends[0]))

  def choice(query: int, why: str) -> Choice:
    ranks = (int(before[query]) or None, int(after[query]) or None)
    return Choice(int(query), why, *ranks)

  rising = order[np.argsort(ratio[order], kind="stable")]
  hurt = [q for q in rising[::-1][:EXTREMES] if ratio[q] > 0]
  helped = [q for q in rising[:EXTREMES] if ratio[q] < 0]
  extremes = {int(q): "re-ranking hurt most" for q in hurt}
  extremes |= {int(q): "re-ranking helped most" for q in helped}
  drawn = [int(q) for q in order[:count]]
  chosen = [
    choice(q, f"{DRAWN}; also: {extremes[q]}" if q in extremes else DRAWN)
    for q in drawn
  ]
  chosen += [
    choice(q, f"picked: {why}") for q, why in extremes.items() if q not in drawn
  ]
  return chosen


def show_cases(
  choices: Sequence[Choice],
  texts: Sequence[str],
  fast: types.Candidates,
  final: types.Candidates,
  positives: Int[np.ndarray, "Q P"],
  visuals: Callable[[Sequence[int]], np.ndarray],
) -> list[Case]:
  """Choices with their pictures: `visuals` is `Source.visuals`."""
  cases = []
  for choice in choices:
    true = [int(row) for row in positives[choice.query] if row >= 0]
    lists = []
    for found in (fast, final):
      rows = [int(r) for r in found.rows[choice.query][:SHOWN] if r >= 0]
      scores = found.scores[choice.query][: len(rows)]  # padding is last
      pictures = visuals(rows) if rows else ()
      lists.append(
        tuple(
          Shown(picture, row in true, float(score))
          for picture, row, score in zip(pictures, rows, scores, strict=True)
        )
      )
    meant = visuals(true[:1])[0]
    cases.append(Case(texts[choice.query], *choice[1:], meant, *lists))
  return cases


def _ranks(rows: Any, positives: Int[np.ndarray, "Q P"]) -> np.ndarray:
  """Place of the first positive of each list, from 1; 0 = none listed."""
  rows, positives = np.asarray(rows), np.asarray(positives)
  hit = (rows[:, :, None] == positives[:, None]) & (rows[:, :, None] >= 0)
  hit = hit.any(axis=2)
  return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)
