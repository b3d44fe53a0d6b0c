"""The queries of a study: captions of a split, the same for every ranker."""

from typing import NamedTuple

import numpy as np

from fs_jax.data import sources
from fs_jax.data import tokenizer as tokenizers
from fs_jax.evaluate import results


class QuerySet(NamedTuple):
  """Queries with their right answers."""

  texts: tuple[str, ...]
  tokens: np.ndarray  # int32 [Q,L]
  truth: results.Truth


def choose(
  source: sources.Source,
  tokenizer: tokenizers.Tokenizer,
  count: int,
  captions: int = 1,
) -> QuerySet:
  """Chooses the first captions of `count` visuals, spread over the source.

  Takes every n-th visual, so that all groups are represented. A visual without
  a group forms its own.
  """
  rows = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
  by_visual = [source.captions(int(i))[:captions] for i in rows]
  texts = tuple(text for texts in by_visual for text in texts)
  owner = np.repeat(rows, [len(texts) for texts in by_visual]).astype(np.int32)
  truth = results.Truth(
    positives=owner[:, None],
    clusters=owner,
    gallery_size=len(source),
    groups=_groups(np.asarray(source.groups), owner),
  )
  return QuerySet(texts, tokenizer.encode(list(texts)), truth)


def _groups(groups: np.ndarray, owner: np.ndarray) -> np.ndarray:
  """int32 [Q,M]: rows of the group of each query's visual; -1 pads."""
  members = [
    np.flatnonzero(groups == groups[i]) if groups[i] >= 0 else np.array([i])
    for i in owner
  ]
  padded = np.full((len(owner), max(map(len, members))), -1, np.int32)
  for row, group in zip(padded, members, strict=True):
    row[: len(group)] = group
  return padded
