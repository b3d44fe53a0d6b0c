"""The answers of a study: what is asked, and what is stored.

That rankers answer right is for test_study.py and test_launch.py.
"""

import jax
import numpy as np

from fs_jax import types
from fs_jax.evaluate.studies import answers, checklist


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
      checklist.Checklist(tmp_path),
      "some",
      made_from,
      lambda: Ranker(asked),
      lambda: found([[2], [2], [2]]),
      np.zeros((3, 1), np.int32),
    )

  said = rank()
  assert asked == ["warm", 3]  # to warm up, then all
  assert said.stages_ms == {"encode": 0.5}
  np.testing.assert_array_equal(said.candidates.rows, [[4, 2]] * 3)
  np.testing.assert_array_equal(said.in_group.rows, [[2]] * 3)
  jax.tree.map(np.testing.assert_array_equal, said, rank())
  assert asked == ["warm", 3]  # nobody is asked twice
  rank({"slow": {"digest": "of another"}})
  assert asked == ["warm", 3] * 2  # what another one said is no answer
