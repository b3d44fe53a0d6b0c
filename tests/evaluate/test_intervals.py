import numpy as np
import pytest

from fs_jax.evaluate import intervals


def test_interval_is_deterministic_and_seeded():
  rng = np.random.default_rng(0)
  values, clusters = rng.random(60), np.repeat(np.arange(20), 3)
  one, other = (intervals.Bootstrap(seed=seed) for seed in (1, 2))
  a = intervals.interval(values, clusters, one)
  assert a == intervals.interval(values, clusters, one)
  assert a != intervals.interval(values, clusters, other)
  assert a.low < a.value < a.high
  np.testing.assert_allclose(a.value, values.mean())


def test_interval_does_not_ask_for_sorted_queries():
  rng = np.random.default_rng(0)
  values, clusters = rng.random(60), np.repeat(np.arange(20), 3)
  order = rng.permutation(60)
  np.testing.assert_allclose(
    intervals.interval(values[order], clusters[order]),
    intervals.interval(values, clusters),
  )


def test_interval_agrees_with_the_obvious_bootstrap():
  rng = np.random.default_rng(0)
  clusters = rng.integers(12, size=50)
  values = rng.random(50) + clusters / 6
  means = []
  for _ in range(3000):
    drawn = rng.choice(np.unique(clusters), size=len(np.unique(clusters)))
    means.append(np.concatenate([values[clusters == c] for c in drawn]).mean())
  bootstrap = intervals.Bootstrap(samples=20000, level=0.9)
  fast = intervals.interval(values, clusters, bootstrap)
  np.testing.assert_allclose(
    fast[1:], np.quantile(means, [0.05, 0.95]), atol=0.02
  )


def test_interval_covers_the_truth_about_as_often_as_it_says():
  rng = np.random.default_rng(0)
  covered = 0
  for seed in range(300):
    difficulty = rng.beta(2, 2, size=150)  # of an image, shared by captions
    values = rng.random((150, 5)) < difficulty[:, None]
    found = intervals.interval(
      values.ravel(),
      np.repeat(np.arange(150), 5),
      intervals.Bootstrap(samples=300, seed=seed),
    )
    covered += found.low <= 0.5 <= found.high
  assert 0.90 <= covered / 300 <= 0.99


def test_interval_of_clusters_is_wider_than_of_queries():
  rng = np.random.default_rng(0)
  values = np.repeat(rng.integers(2, size=100), 5).astype(float)
  clustered = intervals.interval(values, np.repeat(np.arange(100), 5))
  alone = intervals.interval(values, np.arange(500))
  ratio = (clustered.high - clustered.low) / (alone.high - alone.low)
  np.testing.assert_allclose(ratio, np.sqrt(5), rtol=0.15)


def test_interval_of_many_clusters_is_drawn_in_blocks():
  values = np.arange(300_000) % 2
  bootstrap = intervals.Bootstrap(samples=10)
  found = intervals.interval(values, np.arange(300_000), bootstrap)
  assert 0.49 < found.low < found.high < 0.51


def test_paired_interval_sees_what_separate_ones_cannot():
  rng = np.random.default_rng(0)
  clusters = np.repeat(np.arange(100), 2)
  b = rng.random(200)
  a = b + 0.02
  found = intervals.paired_interval(a, b, clusters)
  np.testing.assert_allclose(found, 0.02)
  assert (
    intervals.interval(a, clusters).low < intervals.interval(b, clusters).high
  )
  assert intervals.paired_interval(a, a, clusters) == (0, 0, 0)


@pytest.mark.parametrize(
  ("values", "clusters", "options", "message"),
  [
    ([1.0, np.nan], [0, 1], {}, "finite"),
    ([1.0, 0.0], [0, 0], {}, "at least 2"),
    ([1.0, 0.0], [0], {}, "same length"),
    ([1.0, 0.0], [0, 1], {"samples": 0}, "samples"),
    ([1.0, 0.0], [0, 1], {"level": 95}, "level"),
  ],
)
def test_interval_refuses(values, clusters, options, message):
  with pytest.raises(ValueError, match=message):
    intervals.interval(
      np.array(values), np.array(clusters), intervals.Bootstrap(**options)
    )


def test_paired_interval_refuses_other_queries():
  with pytest.raises(ValueError, match="same queries"):
    intervals.paired_interval(np.zeros(2), np.zeros(3), np.arange(2))
