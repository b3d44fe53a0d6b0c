"""Fast's candidates in the order of Slow and Fast together: pure functions."""

import numpy as np
from jaxtyping import Float, Int

from fs_jax import types
from fs_jax.models import slow as slow_models
from fs_jax.models.text import PAD
from fs_jax.search import fusion


def rerank(
  found: types.Candidates,
  h: Float[np.ndarray, "Q K"],
  n: Float[np.ndarray, " Q"],
  weights: fusion.Weights,
) -> types.Candidates:
  """The first K candidates ordered by u + beta f.g, the others behind them.

  Args:
    found: Fast's answer, best first, its scores f.g; at least K a query.
    h: Slow's scores of the first K.
    n: targets of each text.
    weights: gamma and beta.

  Returns:
    As many candidates as came. Those beyond K keep Fast's order, with scores
    below all that were re-ranked; equal scores keep Fast's order.
  """
  rows, dots = np.asarray(found.rows), np.asarray(found.scores)
  k = h.shape[1]
  here = rows[:, :k] >= 0
  u = fusion.per_target(h, n, weights.gamma)
  score = np.where(
    here, u + weights.beta * np.where(here, dots[:, :k], 0), -np.inf
  )
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


def count_targets(text: Int[np.ndarray, "Q L"]) -> Float[np.ndarray, " Q"]:
  """n of each text: targets of both directions, EOS included.

  `slow_models.targets_of` without a device, which would compile for every Q.
  """
  tokens = (np.asarray(text) != PAD).sum(axis=-1)
  return (slow_models.DIRECTIONS * np.maximum(tokens - 1, 0)).astype(np.float32)
