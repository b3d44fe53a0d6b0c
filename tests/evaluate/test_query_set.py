"""The queries of a study: spread over visuals, with their look-alikes."""

import numpy as np
import pytest

from fs_jax.data import sources
from fs_jax.evaluate.studies import query_set


class Letters:
  """A tokenizer of the first letter."""

  def encode(self, texts):
    return np.array([[ord(text[0])] for text in texts], np.int32)


@pytest.fixture
def split():
  """Six visuals of two captions: a pair of look-alikes, three, one alone."""
  return sources.Source(
    ids=tuple("abcdef"),
    all_captions=tuple((f"{x} one", f"{x} two") for x in "abcdef"),
    groups=np.array([0, 0, 1, 1, 1, -1], np.int32),
    visuals=lambda rows: np.zeros((len(rows), 1, 2, 2, 3), np.uint8),
  )


def test_queries_are_spread_and_know_their_look_alikes(split):
  queries = query_set.choose(split, Letters(), 3)
  assert queries.texts == ("a one", "c one", "f one")
  np.testing.assert_array_equal(queries.tokens[:, 0], [ord(x) for x in "acf"])
  truth = queries.truth
  assert truth.gallery_size == 6
  np.testing.assert_array_equal(truth.positives, [[0], [2], [5]])
  np.testing.assert_array_equal(
    truth.groups, [[0, 1, -1], [2, 3, 4], [5, -1, -1]]
  )


def test_captions_of_a_visual_are_one_cluster(split):
  queries = query_set.choose(split, Letters(), 99, captions=99)
  assert len(queries.texts) == 12  # no visual twice
  np.testing.assert_array_equal(
    queries.truth.clusters, np.repeat(np.arange(6), 2)
  )
