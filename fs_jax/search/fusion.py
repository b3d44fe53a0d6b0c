"""How Slow and Fast combine: the formula, and the weights in it on disk.

Over the candidates x of a query, P(x) = softmax_x(a u + c s f·g), where
u = h / n^gamma is Slow's score per target and s f·g is Fast's. Dividing by a
orders the same: u + beta f·g with beta = s c / a, at temperature tau = 1 / a.
`fitting` finds gamma, beta and tau; this module names, saves and loads them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int
from scipy import special

from fs_jax.machine import commands, manifest, provenance
from fs_jax.runs import layout

KIND = "weights"  # the record's kind
_Array = TypeVar("_Array", np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True)
class Weights:
  """The fitted weights, and how well they explain validation."""

  gamma: float  # the exponent of h / n^gamma
  beta: float  # weight of f·g beside u
  tau: float  # temperature of u alone, nats
  nll: float  # mean over the fitted queries, nats
  nll_by_gamma: tuple[tuple[float, float], ...]  # (gamma, nll), all tried
  k: int  # candidates per query
  queries: int  # number of queries fitted
  queries_without_positive: int  # left out: their lists hold no answer

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> "Weights":
    """Reads the result of `to_dict`, whether or not it went through JSON.

    Raises:
      ValueError: a missing or unknown field.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    if set(values) != names:
      raise ValueError(
        f"weights: must have the fields {sorted(names)}; got {sorted(values)}. "
        "fit them again"
      )
    pairs = tuple((float(g), float(n)) for g, n in values["nll_by_gamma"])
    return cls(**{**values, "nll_by_gamma": pairs})


def per_target(h: _Array, n: _Array, gamma: float | jax.Array) -> _Array:
  """u = h / n^gamma: nats for gamma 0, nats per target for gamma 1.

  NumPy or JAX arrays, in their own precision. Every text has a target, EOS, so
  n >= 1. NumPy counts are checked. JAX counts are not, because a jitted
  function cannot look at them: there n = 0 gives NaN or infinity.

  Args:
    h: [Q,K], Slow's log-likelihoods of K candidates for each text, nats.
    n: [Q], the number of targets of each text.
    gamma: the exponent.

  Raises:
    ValueError: a NumPy count below 1.
  """
  if isinstance(n, np.ndarray) and (n < 1).any():
    raise ValueError(
      f"n: a text has at least 1 target; got {n.min():g}. count EOS too"
    )
  return h / n[:, None] ** gamma


def teacher_entropy(
  h: Float[np.ndarray, "Q K"],
  n: Int[np.ndarray, " Q"],
  mask: Bool[np.ndarray, "Q K"],
  *,
  gamma: float,
  tau: float,
) -> float:
  """Mean entropy of softmax(u / tau) over candidate lists, nats.

  Near 0 the teacher is certain and teaches no more than the label; near log K
  it knows nothing. Lists without a candidate are left out.

  Raises:
    ValueError: a tau that is not positive, or no candidate at all.
  """
  if not tau > 0:
    raise ValueError(f"tau: must be positive; got {tau}. fit the weights")
  mask = np.asarray(mask, bool)
  filled = mask.any(axis=1)
  if not filled.any():
    raise ValueError(
      "mask: must hold a candidate; got none. mine clusters first"
    )
  h, n = np.asarray(h, np.float64), np.asarray(n, np.float64)
  u = per_target(h, n, gamma)[filled]
  log_p = special.log_softmax(np.where(mask[filled], u / tau, -np.inf), axis=1)
  p = np.exp(log_p)
  terms = np.where(p > 0, p * np.where(p > 0, log_p, 0.0), 0.0)
  return float(-terms.sum(axis=1).mean())


def save(
  folder: epath.PathLike, weights: Weights, made_from: provenance.Contract
) -> None:
  """Writes fitted weights, with the contract that they hold for."""
  path = epath.Path(folder) / layout.WEIGHTS
  manifest.write_record(path, KIND, made_from, {"fit": weights.to_dict()})


def load(
  folder: epath.PathLike,
  expected: provenance.Contract | None = None,
  *,
  mend: str = "",
) -> Weights:
  """Reads what `save` wrote.

  Args:
    folder: the folder that holds the weights.
    expected: parts of the contract that must agree.
    mend: the fix that errors suggest; if "", the command that fits them.

  Raises:
    ValueError: no weights there, or weights of other parameters than
      `expected`.
  """
  path = epath.Path(folder) / layout.WEIGHTS
  fit_again = commands.command(
    "evaluate", "--fit", f"--workdir={path.parent.parent}"
  )
  mend = mend or f"fit it: {fit_again}"
  try:
    values = manifest.read_record(path, KIND, mend=mend)
    weights = Weights.from_dict(values["fit"])
  except FileNotFoundError as error:
    raise ValueError(str(error)) from None
  except (KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: must hold fitted weights; got {error!r}. {mend}"
    ) from None
  provenance.check_all(
    expected,
    values["contract"],
    ours_name="these models",
    theirs_name=str(path),
    mend=mend,
  )
  return weights
