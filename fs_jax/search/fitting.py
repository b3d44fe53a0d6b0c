"""Fits how Slow weighs beside Fast on validation queries.

Finds gamma, a >= 0 and c >= 0 of P(x) = softmax_x(a u + c s f·g) with the least
negative log-likelihood (see `fusion`). Where Fast has already learned from
Slow, the likelihood is flat in beta = s c / a, and noise would pick the
maximum. So of all beta that validation cannot tell from the best (one standard
error of the paired difference), the smallest is taken.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, special

from fs_jax.search import fusion

GAMMAS = (0.0, 0.5, 1.0)  # exponents tried: no, half and full length norm

# Penalty on the squared weights of standardised scores: far too small to move
# what the data determine, but it keeps weights finite where a score answers
# every query.
_RIDGE = 1e-6
# Slow says nothing if one standard deviation of u moves the log-odds by less.
_SILENT = 1e-3
# Shares of the likeliest beta that are tried, smallest first.
_SHARES = np.linspace(0, 1, 21)


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
) -> fusion.Weights:
  """Fits gamma, beta and tau to validation queries and Fast's top K of each.

  Queries without a positive among their candidates say nothing and are counted
  apart. With several positives, the log of their summed P is maximised. The
  problem is convex if each query has one positive; otherwise it is solved from
  three starting points. Equal likelihoods go to the smallest gamma.

  Args:
    h: Slow's log-likelihoods, nats.
    n: the number of targets of each text, EOS of each direction included.
    dots: f·g.
    scale: s, Fast's inverse temperature.
    positives: True where a candidate answers the query.
    mask: True for candidates, False for padding.
    gammas: the exponents to try.
    errors: standard errors that a smaller beta may cost; 0 = the likeliest.

  Raises:
    ValueError: shapes or numbers that do not fit, no query with a positive, or
      a Slow model whose weight is 0, where beta has no finite value.
  """
  h, dots = np.asarray(h, np.float64), np.asarray(dots, np.float64)
  n = np.asarray(n, np.float64)
  mask = np.asarray(mask, bool)
  positives = np.asarray(positives, bool)
  _check(h, n, dots, scale, positives, mask)
  positives = positives & mask
  useful = positives.any(axis=1)
  if not useful.any():
    raise ValueError(
      f"positives: at least one query needs one among its candidates; got "
      f"none in {len(h)}. raise weights.candidates or train Fast longer"
    )
  v = scale * dots[useful]
  positives, mask = positives[useful], mask[useful]
  solved = []
  for gamma in gammas:
    u = fusion.per_target(h[useful], n[useful], gamma)
    solved.append((gamma, *_solve(u, v, positives, mask)))
  gamma, a, c, silent, _ = min(solved, key=lambda x: (round(x[4], 9), x[0]))
  if silent:
    raise ValueError(
      "a: Slow's weight must be positive; got 0, its scores say nothing of "
      f"these {int(useful.sum())} queries that Fast does not. train Slow longer"
    )
  u = fusion.per_target(h[useful], n[useful], gamma)
  a, c = _smallest(a, c, u, v, positives, mask, errors)
  return fusion.Weights(
    gamma=float(gamma),
    beta=float(scale * c / a),
    tau=float(1 / a),
    nll=float(_nll(a * u + c * v, positives, mask).mean()),
    nll_by_gamma=tuple((float(x[0]), x[4]) for x in solved),
    k=h.shape[1],
    queries=int(useful.sum()),
    queries_without_positive=int((~useful).sum()),
  )


def _solve(
  u: np.ndarray, v: np.ndarray, positives: np.ndarray, mask: np.ndarray
) -> tuple[float, float, bool, float]:
  """Solves for one gamma: (a, c, whether a is as good as 0, mean nll)."""
  u, spread_u = _standardised(u, mask)
  v, spread_v = _standardised(v, mask)
  varies = np.array([spread_u > 0, spread_v > 0])

  def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
    z = x[0] * u + x[1] * v
    log_all = special.logsumexp(np.where(mask, z, -np.inf), axis=1)
    log_own = special.logsumexp(np.where(positives, z, -np.inf), axis=1)
    p = np.where(mask, np.exp(z - log_all[:, None]), 0.0)
    # Masked before exp: elsewhere z may be far above log_own and overflow.
    own = np.exp(np.where(positives, z, -np.inf) - log_own[:, None])
    slope = [((p - own) * w).sum(axis=1).mean() for w in (u, v)]
    nll = (log_all - log_own).mean()
    return nll + _RIDGE * (x @ x), np.array(slope) + 2 * _RIDGE * x

  starts = [(1.0, 1.0)]
  if (positives.sum(axis=1) > 1).any():  # not convex: start from each side
    starts += [(1.0, 0.0), (0.0, 1.0)]
  solutions = [
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
  best = min(solutions, key=lambda result: result.fun)
  a, c = best.x
  nll = float(best.fun - _RIDGE * (best.x @ best.x))
  if not math.isfinite(nll):
    raise ValueError(
      f"nll: must be finite; got {nll}. remove extreme values of h and dots"
    )
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
  """Lowers c / a as far as the NLL stays within `errors` standard errors.

  Returns:
    (a, c) of the smallest such ratio.
  """
  best = _nll(a * u + c * v, positives, mask)
  for share in _SHARES:
    mixed = u + share * c / a * v
    # The best scale of this mixture, between a tenth of a and ten times a.
    best_scale = optimize.minimize_scalar(
      lambda x, z=mixed: _nll(math.exp(x) * z, positives, mask).mean(),
      bounds=(math.log(a / 10), math.log(a * 10)),
      method="bounded",
      options={"xatol": 1e-6},
    )
    own = math.exp(best_scale.x)
    worse = _nll(own * mixed, positives, mask) - best
    if worse.mean() <= errors * worse.std() / math.sqrt(len(worse)):
      return own, own * share * c / a
  return a, c


def _nll(z: np.ndarray, positives: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Negative log of the positives' summed P, nats per query."""
  log_all = special.logsumexp(np.where(mask, z, -np.inf), axis=1)
  log_own = special.logsumexp(np.where(positives, z, -np.inf), axis=1)
  return log_all - log_own


def _standardised(
  values: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, float]:
  """Values centred per list, which softmax ignores, and scaled to unit spread.

  Returns:
    The values, and the spread they had.
  """
  count = mask.sum(axis=1, keepdims=True)
  mean = np.where(mask, values, 0.0).sum(axis=1, keepdims=True) / count
  centred = np.where(mask, values - mean, 0.0)
  spread = math.sqrt((centred**2).sum() / mask.sum())
  # A smaller spread is the rounding error of a constant.
  if spread <= 1e-12 * float(np.abs(values[mask]).max()):
    return np.zeros_like(centred), 0.0
  return centred / spread, spread


def _check(
  h: np.ndarray,
  n: np.ndarray,
  dots: np.ndarray,
  scale: float,
  positives: np.ndarray,
  mask: np.ndarray,
) -> None:
  if h.ndim != 2 or np.shape(n) != h.shape[:1]:
    raise ValueError(
      f"h, n: must be [Q, K] and [Q]; got {h.shape}, {np.shape(n)}. "
      "give one list and one count per text"
    )
  for field, array in (
    ("dots", dots),
    ("positives", positives),
    ("mask", mask),
  ):
    if array.shape != h.shape:
      raise ValueError(
        f"{field}: must be [Q, K] like h, {h.shape}; got {array.shape}. "
        "give one value per candidate"
      )
  for field, values in (("h", h), ("dots", dots)):
    bad = int((~np.isfinite(values[mask])).sum())
    if bad:
      raise ValueError(
        f"{field}: must be finite for true candidates; got {bad} that are not. "
        "mask them or score them again"
      )
  if not (math.isfinite(scale) and scale > 0):
    raise ValueError(f"scale: must be positive; got {scale}. pass exp(log s)")
