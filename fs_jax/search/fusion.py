"""How to weigh Slow against Fast, fitted on validation and stored.

P(x) = softmax_x(a u + c s f·g) over the candidates of a query, u = h / n^gamma.
With a, c >= 0 of least negative log-likelihood, re-ranking orders by
u + beta f·g, beta = s c / a, and the teacher's temperature is tau = 1 / a.
Likelihood is flat in beta where Fast learned what it knows from Slow, and noise
would choose: of all beta that validation cannot tell from the best, the
smallest is taken (one standard error of the paired difference).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int
from scipy import optimize, special

from fs_jax.machine import commands, manifest, provenance
from fs_jax.runs import layout

KIND = "weights"  # of the record
GAMMAS = (0.0, 0.5, 1.0)  # exponents tried: none, half and full length norm

# Of the squared weights of standardised scores. Far below what the data say,
# and what keeps the weights finite where a score answers every query.
_RIDGE = 1e-6
# Where one standard deviation of u moves the log-odds by less, Slow is silent.
_SILENT = 1e-3
# Of the likeliest beta, tried from the smallest.
_SHARES = np.linspace(0, 1, 21)


@dataclasses.dataclass(frozen=True)
class Weights:
  """The weights, and how well they explain validation."""

  gamma: float  # of h / n^gamma
  beta: float  # weight of f·g beside u
  tau: float  # temperature of u alone, nats
  nll: float  # mean over fitted queries, nats
  nll_by_gamma: tuple[tuple[float, float], ...]  # (gamma, nll), all tried
  k: int  # candidates a query
  queries: int  # fitted
  queries_without_positive: int  # left out: their lists hold no answer

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> "Weights":
    """What `to_dict` gave, from JSON or not.

    Raises:
      ValueError: a missing or unknown field.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    if set(values) != known:
      raise ValueError(
        f"fit: must have the fields {sorted(known)}; got {sorted(values)}. "
        "fit again"
      )
    pairs = tuple((float(g), float(n)) for g, n in values["nll_by_gamma"])
    return cls(**{**values, "nll_by_gamma": pairs})


def normalised(
  h: Float[np.ndarray, "Q K"], n: Int[np.ndarray, " Q"], gamma: float
) -> Float[np.ndarray, "Q K"]:
  """u = h / n^gamma, nats (gamma 0) to nats a target (gamma 1)."""
  n = np.asarray(n, np.float64)
  if (n < 1).any():
    raise ValueError(
      f"n: a text has at least 1 target; got {n.min():g}. count EOS too"
    )
  return np.asarray(h, np.float64) / n[:, None] ** gamma


def fit(
  h: Float[np.ndarray, "Q K"],
  n: Int[np.ndarray, " Q"],
  dots: Float[np.ndarray, "Q K"],
  scale: float,
  positives: Bool[np.ndarray, "Q K"],
  mask: Bool[np.ndarray, "Q K"],
  *,
  gammas: tuple[float, ...] = GAMMAS,
  errors: float = 1.0,
) -> Weights:
  """Fits gamma, beta and tau to validation queries and Fast's top K of each.

  Queries without positive among their candidates say nothing and are counted
  apart; of several positives the log of their summed P is maximised. The
  problem is convex with one positive a query, and solved from three starts
  otherwise. Equal likelihoods go to the smallest gamma.

  Args:
    h: Slow's log-likelihoods, nats.
    n: targets of each text, EOS of each direction included.
    dots: f·g.
    scale: s, Fast's inverse temperature.
    positives: candidates that answer the query.
    mask: true candidates; padding is False.
    gammas: tried.
    errors: standard errors that a smaller beta may cost; 0 = the likeliest.

  Raises:
    ValueError: shapes or numbers that do not fit, no query with a positive, or
      a Slow model whose weight is 0, where beta has no finite value.
  """
  h, dots = np.asarray(h, np.float64), np.asarray(dots, np.float64)
  mask = np.asarray(mask, bool)
  positives = np.asarray(positives, bool)
  _check(h, n, dots, scale, positives, mask)
  positives = positives & mask
  useful = positives.any(axis=1)
  if not useful.any():
    raise ValueError(
      f"positives: at least one query needs one among its candidates; got "
      f"none in {len(h)}. raise K or train Fast longer"
    )
  v = scale * dots[useful]
  positives, mask = positives[useful], mask[useful]
  solved = []
  for gamma in gammas:
    u = normalised(h[useful], np.asarray(n)[useful], gamma)
    solved.append((gamma, *_solve(u, v, positives, mask)))
  gamma, a, c, silent, _ = min(solved, key=lambda x: (round(x[4], 9), x[0]))
  if silent:
    raise ValueError(
      "a: Slow's weight must be positive; got 0, its scores say nothing of "
      f"these {int(useful.sum())} queries that Fast does not. train Slow longer"
    )
  u = normalised(h[useful], np.asarray(n)[useful], gamma)
  a, c = _smallest(a, c, u, v, positives, mask, errors)
  return Weights(
    gamma=float(gamma),
    beta=float(scale * c / a),
    tau=float(1 / a),
    nll=float(_nll(a * u + c * v, positives, mask).mean()),
    nll_by_gamma=tuple((float(x[0]), x[4]) for x in solved),
    k=h.shape[1],
    queries=int(useful.sum()),
    queries_without_positive=int((~useful).sum()),
  )


def teacher_entropy(
  h: Float[np.ndarray, "Q K"],
  n: Int[np.ndarray, " Q"],
  mask: Bool[np.ndarray, "Q K"],
  *,
  gamma: float,
  tau: float,
) -> float:
  """Mean entropy of softmax(u / tau) over candidate lists, nats.

  Near 0 the teacher is sure and teaches no more than the label; near log K it
  knows nothing. Lists without candidate are left out.

  Raises:
    ValueError: tau that is not positive, or no candidate at all.
  """
  if not tau > 0:
    raise ValueError(f"tau: must be positive; got {tau}. fit it")
  mask = np.asarray(mask, bool)
  filled = mask.any(axis=1)
  if not filled.any():
    raise ValueError("mask: must hold a candidate; got none. mine lists first")
  u = normalised(h, n, gamma)[filled]
  log_p = special.log_softmax(np.where(mask[filled], u / tau, -np.inf), axis=1)
  p = np.exp(log_p)
  terms = np.where(p > 0, p * np.where(p > 0, log_p, 0.0), 0.0)
  return float(-terms.sum(axis=1).mean())


def _solve(
  u: np.ndarray, v: np.ndarray, positives: np.ndarray, mask: np.ndarray
) -> tuple[float, float, bool, float]:
  """(a, c, whether a is as good as 0, mean nll) of one gamma."""
  u, spread_u = _standardised(u, mask)
  v, spread_v = _standardised(v, mask)
  varies = np.array([spread_u > 0, spread_v > 0])

  def loss(x):
    z = x[0] * u + x[1] * v
    log_all = special.logsumexp(np.where(mask, z, -np.inf), axis=1)
    log_own = special.logsumexp(np.where(positives, z, -np.inf), axis=1)
    p = np.where(mask, np.exp(z - log_all[:, None]), 0.0)
    # Where positives is False, z may be far above log_own.
    own = np.exp(np.where(positives, z, -np.inf) - log_own[:, None])
    slope = [((p - own) * w).sum(axis=1).mean() for w in (u, v)]
    nll = (log_all - log_own).mean()
    return nll + _RIDGE * (x @ x), np.array(slope) + 2 * _RIDGE * x

  starts = [(1.0, 1.0)]
  if (positives.sum(axis=1) > 1).any():  # not convex: look from each side
    starts += [(1.0, 0.0), (0.0, 1.0)]
  found = [
    optimize.minimize(
      loss,
      np.where(varies, start, 0.0),
      jac=True,
      method="L-BFGS-B",
      bounds=[(0, None)] * 2,
      options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 500},
    )
    for start in starts
  ]
  best = min(found, key=lambda result: result.fun)
  a, c = best.x
  nll = float(best.fun - _RIDGE * (best.x @ best.x))
  if not math.isfinite(nll):
    raise ValueError(f"nll: must be finite; got {nll}. look at h and dots")
  return (
    float(a / spread_u) if spread_u > 0 else 0.0,
    float(c / spread_v) if spread_v > 0 else 0.0,
    bool(a < _SILENT),
    nll,
  )


def _smallest(
  a: float,
  c: float,
  u: np.ndarray,
  v: np.ndarray,
  positives: np.ndarray,
  mask: np.ndarray,
  errors: float,
) -> tuple[float, float]:
  """(a, c) of the least c / a that is as likely, within standard errors."""
  best = _nll(a * u + c * v, positives, mask)
  for share in _SHARES:
    mixed = u + share * c / a * v
    # The scale that suits this mixture, between a tenth and ten times a.
    found = optimize.minimize_scalar(
      lambda x, z=mixed: _nll(math.exp(x) * z, positives, mask).mean(),
      bounds=(math.log(a / 10), math.log(a * 10)),
      method="bounded",
      options={"xatol": 1e-6},
    )
    own = math.exp(found.x)
    worse = _nll(own * mixed, positives, mask) - best
    if worse.mean() <= errors * worse.std() / math.sqrt(len(worse)):
      return own, own * share * c / a
  return a, c


def _nll(z: np.ndarray, positives: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Of each query, nats: its positives' summed P."""
  log_all = special.logsumexp(np.where(mask, z, -np.inf), axis=1)
  log_own = special.logsumexp(np.where(positives, z, -np.inf), axis=1)
  return log_all - log_own


def _standardised(
  values: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, float]:
  """Centred on each list, which softmax ignores, and of unit spread."""
  count = mask.sum(axis=1, keepdims=True)
  mean = np.where(mask, values, 0.0).sum(axis=1, keepdims=True) / count
  centred = np.where(mask, values - mean, 0.0)
  spread = math.sqrt((centred**2).sum() / mask.sum())
  # Below that, what is left is rounding of a constant.
  if spread <= 1e-12 * float(np.abs(values[mask]).max()):
    return np.zeros_like(centred), 0.0
  return centred / spread, spread


def _check(h, n, dots, scale, positives, mask) -> None:
  if h.ndim != 2 or np.shape(n) != h.shape[:1]:
    raise ValueError(
      f"h, n: must be [Q, K] and [Q]; got {h.shape}, {np.shape(n)}. "
      "give one list and one count a text"
    )
  for field, array in (
    ("dots", dots),
    ("positives", positives),
    ("mask", mask),
  ):
    if array.shape != h.shape:
      raise ValueError(
        f"{field}: must be [Q, K] like h, {h.shape}; got {array.shape}. "
        "give one a candidate"
      )
  for field, values in (("h", h), ("dots", dots)):
    bad = int((~np.isfinite(values[mask])).sum())
    if bad:
      raise ValueError(
        f"{field}: must be finite for true candidates; got {bad} that are not. "
        "mask them or look for the cause"
      )
  if not (math.isfinite(scale) and scale > 0):
    raise ValueError(f"scale: must be positive; got {scale}. pass exp(log s)")


def save(
  where: epath.PathLike, fit: Weights, made_from: provenance.Contract
) -> None:
  """What was fitted on validation, with the contracts it holds for."""
  path = epath.Path(where) / layout.WEIGHTS
  manifest.write_record(path, KIND, made_from, {"fit": fit.to_dict()})


def load(
  where: epath.PathLike,
  expected: provenance.Contract | None = None,
  *,
  mend: str = "",
) -> Weights:
  """Reads what `save` wrote.

  Args:
    where: folder of the weights.
    expected: parts of the contract that must agree.
    mend: said where they do not; if "", how to fit them.

  Raises:
    ValueError: none there, or one of other parameters than `expected`.
  """
  path = epath.Path(where) / layout.WEIGHTS
  fit_again = commands.command(
    "evaluate", "--fit", f"--workdir={path.parent.parent}"
  )
  mend = mend or f"fit it: {fit_again}"
  try:
    values = manifest.read_record(path, KIND, mend=mend)
    fit = Weights.from_dict(values["fit"])
  except FileNotFoundError as error:
    raise ValueError(str(error)) from None
  except (KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: must be what was fitted; got {error!r}. {mend}"
    ) from None
  provenance.check_all(
    expected,
    values["contract"],
    ours_name="these models",
    theirs_name=str(path),
    mend=mend,
  )
  return fit
