"""The answers of a study: who is asked what, and what is kept.

That rankers answer right is for test_study.py and test_launch.py.
"""

import jax
import numpy as np
import pytest

from fs_jax import types
from fs_jax.data import sources
from fs_jax.evaluate.studies import answers, checklist


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


def test_questions_are_spread_and_know_their_look_alikes(split):
  asked = answers.questions(split, Letters(), 3)
  assert asked.texts == ("a one", "c one", "f one")
  np.testing.assert_array_equal(asked.tokens[:, 0], [ord(x) for x in "acf"])
  truth = asked.truth
  assert truth.gallery == 6
  np.testing.assert_array_equal(truth.positives, [[0], [2], [5]])
  np.testing.assert_array_equal(
    truth.groups, [[0, 1, -1], [2, 3, 4], [5, -1, -1]]
  )


def test_captions_of_a_visual_are_one_cluster(split):
  asked = answers.questions(split, Letters(), 99, captions=99)
  assert len(asked.texts) == 12  # no visual twice
  np.testing.assert_array_equal(
    asked.truth.clusters, np.repeat(np.arange(6), 2)
  )


def found(rows):
  listed = np.array(rows, np.int32)
  return types.Candidates(listed, np.zeros(listed.shape, np.float32))


class Ranker:
  """Says the same to everybody; notes how many asked at once."""

  def __init__(self, asked):
    self.asked, self.stages_ms = asked, {"encode": 0.5}

  def warm(self, text):
    self.asked.append("warm")

  def __call__(self, text):
    self.asked.append(len(text))
    return found([[4, 2]] * len(text))


MADE_FROM = {"slow": {"digest": "of one"}}


def test_answers_are_kept_and_read_again(tmp_path):
  asked = []

  def rank(made_from=MADE_FROM):
    return answers.rank(
      checklist.Parts(tmp_path),
      "some",
      made_from,
      lambda: Ranker(asked),
      lambda: found([[2], [2], [2]]),
      np.zeros((3, 1), np.int32),
    )

  said = rank()
  assert asked == ["warm", 3]  # to warm up, then all
  assert said.stages_ms == {"encode": 0.5}
  np.testing.assert_array_equal(said.found.rows, [[4, 2]] * 3)
  np.testing.assert_array_equal(said.in_group.rows, [[2]] * 3)
  jax.tree.map(np.testing.assert_array_equal, said, rank())
  assert asked == ["warm", 3]  # nobody is asked twice
  rank({"slow": {"digest": "of another"}})
  assert asked == ["warm", 3] * 2  # what another one said is no answer
