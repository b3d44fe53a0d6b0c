"""The captions of a source, tokenised once; equal captions share an id."""

from typing import NamedTuple

import numpy as np

from fs_jax.data import order, sources, tokenizer


class Captions(NamedTuple):
  """Captions of N visuals; U differ once they are normalised."""

  tokens: np.ndarray  # int32 [U,L], by text_id
  text_id: np.ndarray  # int32 [n], all captions in the order of the visuals
  first: np.ndarray  # int64 [N], index into text_id of a visual's captions
  counts: np.ndarray  # int64 [N], captions of a visual

  def at(self, visuals: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Captions at `places` int [n,M] of n visuals -> text_id int32 [n*M]."""
    return self.text_id[(self.first[visuals][:, None] + places).ravel()]

  def choose(
    self, key: order.Key, visuals: np.ndarray, first: int, m: int
  ) -> np.ndarray:
    """Draws m captions of each visual -> text_id int32 [n*m].

    Args:
      key: seed and stream.
      visuals: int [n], captioned visuals.
      first: the first row's number, which decides its draw.
      m: captions of each.
    """
    most = int(self.counts.max())
    places = order.choose(key, first, self.counts[visuals], m, most)
    return self.at(visuals, places)


def tokenise(source: sources.Source, tok: tokenizer.Tokenizer) -> Captions:
  """Tokenises all captions of a source."""
  ids: dict[str, int] = {}
  text_id = [
    ids.setdefault(tok.normalise(caption), len(ids))
    for captions in source.all_captions
    for caption in captions
  ]
  counts = np.array([len(c) for c in source.all_captions], np.int64)
  return Captions(
    tokens=tok.encode(list(ids)),
    text_id=np.array(text_id, np.int32),
    first=np.cumsum(counts) - counts,
    counts=counts,
  )


def check_captioned(
  captions: Captions, source: sources.Source, rows: np.ndarray
) -> None:
  """Refuses rows of a source that have no caption."""
  bare = rows[captions.counts[rows] == 0]
  if len(bare):
    raise ValueError(
      f"captions: every visual used here needs one; got none for "
      f"{source.ids[bare[0]]!r} and {len(bare) - 1} more. use a split with "
      "captions"
    )
