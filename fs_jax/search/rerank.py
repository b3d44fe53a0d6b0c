"""Orders Fast's candidates by Slow and Fast together: pure functions."""

import numpy as np
from jaxtyping import Float, Int

from fs_jax import types
from fs_jax.models import slow as slow_models
from fs_jax.models.text import PAD
from fs_jax.search import fusion


def rerank(
  candidates: types.Candidates,
  h: Float[np.ndarray, "Q K"],
  n: Float[np.ndarray, " Q"],
  weights: fusion.Weights,
) -> types.Candidates:
  """Orders the first K candidates by u + beta f·g and puts the others behind.

  Args:
    candidates: Fast's answer, best first, with scores f·g; at least K a query.
    h: Slow's log-likelihoods of the first K.
    n: the number of targets of each text.
    weights: gamma and beta.

  Returns:
    As many candidates as were given. Those beyond K keep Fast's order and score
    below all that were re-ranked. Equal scores keep Fast's order.
  """
  rows, dots = np.asarray(candidates.rows), np.asarray(candidates.scores)
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
  # Steps of 1: Fast's small differences would round to ties beside `lowest`.
  falls = (dots[:, k:] < dots[:, k - 1 : -1]).astype(np.float32)
  falls[:, 0] = 1
  tail = lowest - falls.cumsum(axis=1)
  tail = np.where(rows[:, k:] >= 0, tail, -np.inf)
  return types.Candidates(
    np.concatenate([first, rows[:, k:]], axis=1),
    np.concatenate([head, tail.astype(np.float32)], axis=1),
  )


def count_targets(text: Int[np.ndarray, "Q L"]) -> Float[np.ndarray, " Q"]:
  """Counts the targets n of each text, of both directions, EOS included.

  As `slow_models.targets_of`, but in NumPy: JAX would compile for every Q.
  """
  tokens = (np.asarray(text) != PAD).sum(axis=-1)
  return (slow_models.DIRECTIONS * np.maximum(tokens - 1, 0)).astype(np.float32)
