import dataclasses

import numpy as np
import pytest
from scipy import optimize, special

from fs_jax.search import fitting, fusion


def drawn(a, c, gamma, *, queries=4000, k=12, scale=20.0, seed=0):
  """Lists whose positive is drawn from the model itself."""
  rng = np.random.default_rng(seed)
  n = rng.integers(4, 40, size=queries)
  h = rng.normal(size=(queries, k)) * 3 * n[:, None] ** 0.5 - 4 * n[:, None]
  dots = np.clip(rng.normal(size=(queries, k)) * 0.1, -1, 1)
  logits = a * h / n[:, None] ** gamma + c * scale * dots
  own = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
  positives = np.arange(k) == own[:, None]
  return {
    "h": h,
    "n": n,
    "dots": dots,
    "scale": scale,
    "positives": positives,
    "mask": np.ones((queries, k), bool),
  }


def nll_of(data, a, c, gamma):
  """One query at a time."""
  losses = []
  for h, n, dots, own, mask in zip(
    *(data[f] for f in ("h", "n", "dots", "positives", "mask")), strict=True
  ):
    if (own & mask).any():
      z = a * h / n**gamma + c * data["scale"] * dots
      p = special.softmax(z[mask])
      losses.append(-np.log(p[own[mask]].sum()))
  return np.mean(losses)


@pytest.mark.parametrize(
  ("a", "c", "gamma"), [(0.3, 0.8, 0.0), (0.7, 0.4, 0.5), (3.0, 1.0, 1.0)]
)
def test_recovers_what_made_the_data(a, c, gamma):
  data = drawn(a, c, gamma)
  fitted = fitting.fit(**data, errors=0)
  assert fitted.gamma == gamma
  np.testing.assert_allclose(fitted.tau, 1 / a, rtol=0.1)
  np.testing.assert_allclose(fitted.beta, 20 * c / a, rtol=0.15)
  assert fitted.k == 12
  assert (fitted.queries, fitted.queries_without_positive) == (4000, 0)
  by_gamma = dict(fitted.nll_by_gamma)
  assert list(by_gamma) == [0.0, 0.5, 1.0]
  assert min(by_gamma.values()) == by_gamma[gamma]
  np.testing.assert_allclose(fitted.nll, by_gamma[gamma], atol=1e-9)


def test_is_the_least_of_an_obvious_search():
  data = drawn(0.6, 0.5, 0.5, queries=120)
  fitted = fitting.fit(**data, gammas=(0.5,), errors=0)
  found = optimize.minimize(
    lambda x: nll_of(data, *np.abs(x), 0.5), [1, 1], method="Nelder-Mead"
  )
  a, c = 1 / fitted.tau, fitted.beta / fitted.tau / data["scale"]
  np.testing.assert_allclose([a, c], np.abs(found.x), rtol=1e-3)
  np.testing.assert_allclose(fitted.nll, found.fun, atol=1e-7)
  np.testing.assert_allclose(fitted.nll, nll_of(data, a, c, 0.5), atol=1e-9)


def test_the_least_weight_of_fast_that_is_as_likely():
  """Within a standard error of the likeliest, and a smaller one is not."""
  data = drawn(0.6, 0.5, 0.5, queries=150)
  best = fitting.fit(**data, gammas=(0.5,), errors=0)
  fitted = fitting.fit(**data, gammas=(0.5,))
  assert 0 < fitted.beta < best.beta

  def each(tau, beta):  # nats of every query
    u = data["h"] / np.sqrt(data["n"])[:, None]
    log_p = special.log_softmax((u + beta * data["dots"]) / tau, axis=1)
    return -log_p[data["positives"]]

  def cost(beta):  # of that beta, in standard errors
    found = optimize.minimize_scalar(
      lambda tau: each(tau, beta).mean(), bounds=(0.1, 10), method="bounded"
    )
    worse = each(found.x, beta) - each(best.tau, best.beta)
    return worse.mean() * np.sqrt(len(worse)) / worse.std()

  assert cost(fitted.beta) <= 1 < cost(fitted.beta - best.beta / 20)
  np.testing.assert_allclose(fitted.nll, each(fitted.tau, fitted.beta).mean())


def test_fast_that_says_what_slow_says_gets_no_weight():
  data = drawn(0.7, 0.0, 0.5)
  u = data["h"] / np.sqrt(data["n"])[:, None]
  noise = np.random.default_rng(2).normal(size=u.shape)
  dots = 0.02 * (u - u.mean(axis=1, keepdims=True)) + 0.05 * noise
  fitted = fitting.fit(**data | {"dots": dots})
  assert fitted.beta == 0.0
  np.testing.assert_allclose(fitted.tau, 1 / 0.7, rtol=0.1)


def test_shift_of_a_list_and_units_change_nothing():
  data = drawn(0.6, 0.5, 0.0, queries=300)
  a = fitting.fit(**data, gammas=(0.0,))
  moved = data | {"h": 10 * data["h"] - 1e4 * np.arange(300)[:, None]}
  b = fitting.fit(**moved, gammas=(0.0,))
  np.testing.assert_allclose(b.tau, 10 * a.tau, rtol=1e-4)
  np.testing.assert_allclose(b.beta, 10 * a.beta, rtol=1e-4)


def test_fast_that_misleads_gets_no_weight():
  data = drawn(0.7, 0.0, 0.5)
  data["dots"] = data["dots"] - 0.1 * data["positives"]
  fitted = fitting.fit(**data)
  assert fitted.beta == 0.0
  np.testing.assert_allclose(fitted.tau, 1 / 0.7, rtol=0.1)


def test_fast_without_spread_gets_no_weight():
  data = drawn(0.7, 0.0, 0.5, queries=500)
  fitted = fitting.fit(**data | {"dots": np.full_like(data["dots"], 0.3)})
  assert fitted.beta == 0.0


@pytest.mark.parametrize("how", ["constant", "misleading"])
def test_slow_that_says_nothing_is_refused(how):
  data = drawn(0.0, 1.0, 0.5, queries=500)
  if how == "constant":
    h = np.full_like(data["h"], -37.1)
  else:
    h = data["h"] - 5 * np.sqrt(data["n"])[:, None] * data["positives"]
  with pytest.raises(ValueError, match="train Slow longer"):
    fitting.fit(**data | {"h": h})


def test_masked_candidates_and_queries_without_positive_do_not_count():
  data = drawn(0.7, 0.4, 0.5, queries=400)
  plain = fitting.fit(**data)
  wide = {
    f: np.pad(data[f], ((0, 50), (0, 3)))
    for f in ("h", "dots", "positives", "mask")
  }
  wide["h"][:, -3:] = np.nan
  wide["positives"][:, -3:] = True  # masked, so no positives
  wide["mask"][400:, :5] = True  # lists without positive
  n = np.pad(data["n"], (0, 50), constant_values=7)
  found = fitting.fit(**wide, n=n, scale=data["scale"])
  assert found == dataclasses.replace(
    plain,
    k=15,
    queries_without_positive=50,
    **{f: getattr(found, f) for f in ("nll", "nll_by_gamma", "beta", "tau")},
  )
  np.testing.assert_allclose(found.nll, plain.nll, atol=1e-7)
  np.testing.assert_allclose(found.beta, plain.beta, rtol=1e-4)
  np.testing.assert_allclose(found.tau, plain.tau, rtol=1e-4)


def test_several_positives_share_their_probability():
  data = drawn(0.6, 0.5, 0.5, queries=150)
  extra = np.random.default_rng(1).random(data["h"].shape) < 0.1
  data["positives"] |= extra
  fitted = fitting.fit(**data, gammas=(0.5,), errors=0)
  a, c = 1 / fitted.tau, fitted.beta / fitted.tau / data["scale"]
  np.testing.assert_allclose(fitted.nll, nll_of(data, a, c, 0.5), atol=1e-9)
  for da, dc in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)):
    assert nll_of(data, a + da, c + dc, 0.5) > fitted.nll


def test_perfect_scores_stay_finite():
  data = drawn(1.0, 1.0, 0.0, queries=50)
  h = np.where(data["positives"], -10.0, -30.0)
  fitted = fitting.fit(**data | {"h": h})
  assert fitted.nll < 1e-3
  assert 0.1 < fitted.tau < 10 and np.isfinite(fitted.beta)


def test_equal_lengths_choose_no_normalisation():
  data = drawn(0.5, 0.5, 0.0, queries=300)
  data["n"] = np.full(300, 11)
  assert fitting.fit(**data).gamma == 0.0


def test_the_order_of_the_fit_is_the_order_of_p():
  data = drawn(0.7, 0.4, 0.5, queries=300)
  fitted = fitting.fit(**data)
  u = fusion.per_target(data["h"], data["n"], fitted.gamma)
  a, c = 1 / fitted.tau, fitted.beta / fitted.tau / data["scale"]
  p = special.softmax(a * u + c * data["scale"] * data["dots"], axis=1)
  np.testing.assert_array_equal(
    np.argsort(u + fitted.beta * data["dots"], axis=1), np.argsort(p, axis=1)
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"n": np.zeros(3, int)}, "at least 1 target"),
    ({"n": np.ones(4, int)}, "h, n"),
    ({"dots": np.zeros((3, 5))}, "dots: must be"),
    ({"mask": np.ones((3, 5), bool)}, "mask: must be"),
    ({"h": np.full((3, 4), -np.inf)}, "h: must be finite"),
    ({"scale": 0.0}, "scale"),
    ({"positives": np.zeros((3, 4), bool)}, "at least one query"),
  ],
)
def test_fit_refuses(change, message):
  data = drawn(1.0, 1.0, 0.5, queries=3, k=4)
  with pytest.raises(ValueError, match=message):
    fitting.fit(**data | change)
