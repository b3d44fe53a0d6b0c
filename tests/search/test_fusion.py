"""The formula that joins Slow and Fast, and its weights as JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from fs_jax.search import fusion


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_per_target_is_the_same_for_numpy_jax_and_a_loop(gamma):
  h = np.array([[-3.0, -5.0], [-12.0, -1.0], [-2.5, -8.0]], np.float32)
  n = np.array([1, 9, 4], np.float32)
  wanted = [
    [x / count**gamma for x in row] for row, count in zip(h, n, strict=True)
  ]
  got = fusion.per_target(h, n, gamma)
  assert isinstance(got, np.ndarray) and got.dtype == np.float32
  np.testing.assert_allclose(got, wanted, rtol=1e-6)
  jitted = jax.jit(fusion.per_target)
  again = jitted(jnp.asarray(h), jnp.asarray(n), jnp.float32(gamma))
  assert again.dtype == jnp.float32
  np.testing.assert_allclose(again, wanted, rtol=1e-6)


def test_per_target_keeps_the_precision_it_is_given():
  h, n = np.full((1, 2), -1 / 3), np.array([7.0])
  got = fusion.per_target(h, n, 0.5)
  assert got.dtype == np.float64
  np.testing.assert_array_equal(got, h / 7.0**0.5)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_per_target_refuses_a_text_without_targets(gamma):
  h = np.full((3, 2), -1.0)
  with pytest.raises(
    ValueError, match="n: a text has at least 1 target; got 0"
  ):
    fusion.per_target(h, np.array([4.0, 0.0, 2.0]), gamma)


def test_per_target_cannot_check_counts_inside_a_jitted_function():
  h, n = jnp.full((2, 1), -2.0), jnp.array([4.0, 0.0])
  got = jax.jit(fusion.per_target)(h, n, jnp.float32(0.5))
  np.testing.assert_array_equal(got, [[-1.0], [-np.inf]])


def test_teacher_entropy():
  n = np.array([4, 9])
  flat = np.zeros((2, 3))
  some = np.array([[True, True, False], [True, True, True]])
  both = fusion.teacher_entropy(flat, n, some, gamma=0.5, tau=1.0)
  np.testing.assert_allclose(both, (np.log(2) + np.log(3)) / 2)
  h = np.array([[-1.0, -3.0, -2.0], [-5.0, -4.0, -9.0]])
  u = h / np.sqrt(n)[:, None] / 0.7
  p = special.softmax(u, axis=1)
  all_ = np.ones((2, 3), bool)
  np.testing.assert_allclose(
    fusion.teacher_entropy(h, n, all_, gamma=0.5, tau=0.7),
    -(p * np.log(p)).sum(axis=1).mean(),
  )
  sure = fusion.teacher_entropy(h, n, all_, gamma=0.0, tau=1e-4)
  assert sure == 0.0
  empty = np.array([[False] * 3, [True] * 3])
  np.testing.assert_allclose(
    fusion.teacher_entropy(flat, n, empty, gamma=0.0, tau=1.0), np.log(3)
  )
  with pytest.raises(ValueError, match="tau"):
    fusion.teacher_entropy(h, n, all_, gamma=0.0, tau=0.0)
  with pytest.raises(ValueError, match="candidate"):
    fusion.teacher_entropy(h, n, ~all_, gamma=0.0, tau=1.0)


def test_weights_survive_json():
  weights = fusion.Weights(
    0.5, 3.25, 1.5, 0.75, ((0.0, 1.25), (0.5, 0.75)), 12, 100, 3
  )
  values = json.loads(json.dumps(weights.to_dict()))
  assert fusion.Weights.from_dict(values) == weights
  with pytest.raises(ValueError, match="fields"):
    fusion.Weights.from_dict({"beta": 1.0})
