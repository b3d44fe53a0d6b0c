"""The checks that conftest and pyproject turn on do fire."""

import importlib
import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

MODULE = """
from flax import linen as nn
from jaxtyping import Array, Float


def dot(a: Float[Array, "B E"], b: Float[Array, "B E"]) -> Float[Array, " B"]:
  return (a * b).sum(-1)


class Wrong(nn.Module):
  @nn.compact
  def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return nn.Dense(x.shape[1] + 1)(x)
"""


def test_eight_cpu_devices():
  assert [d.platform for d in jax.devices()] == ["cpu"] * 8


def test_rank_promotion_raises():
  with pytest.raises(ValueError, match="rank_promotion"):
    jnp.ones((2, 3)) + jnp.ones(3)


def test_shapes_are_checked(tmp_path, monkeypatch):
  (tmp_path / "hooked_by_test.py").write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  with jaxtyping.install_import_hook("hooked_by_test", "beartype.beartype"):
    hooked = importlib.import_module("hooked_by_test")

  ones = jnp.ones((2, 3))
  np.testing.assert_array_equal(jax.jit(hooked.dot)(ones, ones), [3.0, 3.0])
  with pytest.raises(jaxtyping.TypeCheckError):
    hooked.dot(ones, jnp.ones((2, 4)))
  with pytest.raises(jaxtyping.TypeCheckError):
    hooked.dot(ones, jnp.ones((2, 3), jnp.int32))
  with pytest.raises(jaxtyping.TypeCheckError):
    hooked.Wrong().init(jax.random.key(0), ones)


@pytest.mark.parametrize("module", ["fs_jax.losses", "launch", "other"])
@pytest.mark.parametrize("kind", [DeprecationWarning, RuntimeWarning])
def test_warnings_are_errors(module, kind):
  with pytest.raises(kind):
    warnings.warn_explicit("old", kind, "x.py", 1, module=module)


def test_some_of_third_parties_are_not():
  text = "the load_module() method is deprecated and slated for removal"
  with warnings.catch_warnings(record=True):
    warnings.warn_explicit(text, DeprecationWarning, "x.py", 1, module="other")
