"""The cheapest of a grid, found in a few measurements; depths in between."""

import itertools

import pytest

from fs_jax.gallery import tuner

TREE = tuner.Tree(100_000, 475, 200_000)


def recalls(per_leaf, per_row):
  """Recall as both knobs let it be: shares of depth k, the smaller counts."""
  calls = []

  def measure(leaves, reorder):
    calls.append((leaves, reorder))
    return {
      k: min(1, leaves / (per_leaf * k)) * min(1, reorder / (per_row * k))
      for k in tuner.DEPTHS
      if k <= reorder
    }

  return measure, calls


def pairs(found):
  return list(zip(found["leaves_to_search"], found["reorder"], strict=True))


@pytest.mark.parametrize("target", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("per_leaf", [0.05, 0.9, 4.7])
@pytest.mark.parametrize("per_row", [1, 3.1, 30])
def test_the_cheapest_of_the_whole_grid(target, per_leaf, per_row):
  measure, calls = recalls(per_leaf, per_row)
  found = tuner.tune(TREE, measure, target)
  assert len(set(calls)) == len(calls) <= 100
  assert found["depths"] == [10, 20, 50, 100]
  for k, (leaves, reorder) in zip(tuner.DEPTHS, pairs(found), strict=True):
    grid = itertools.product(
      tuner._leaves(TREE.leaves), tuner._rows(k, TREE.size)
    )
    costs = [TREE.cost(*at) for at in grid if measure(*at)[k] >= target]
    assert measure(leaves, reorder)[k] >= target
    assert TREE.cost(leaves, reorder) == min(costs)


def test_the_most_that_is_tried_where_nothing_suffices():
  measure, calls = recalls(per_leaf=1, per_row=1000)
  found = tuner.tune(TREE, measure, 0.99)
  assert pairs(found)[-1] == (475, 3200)
  assert len(calls) < 50


def test_what_is_given_stays():
  measure, calls = recalls(per_leaf=1, per_row=3)
  found = tuner.tune(TREE, measure, 0.9, leaves=80)
  assert found["leaves_to_search"] == 80
  assert {leaves for leaves, _ in calls} == {80}
  found = tuner.tune(TREE, measure, 0.9, reorder=60)
  assert found["reorder"] == 60
  given = found | {"leaves": 475}
  assert [tuner.choose_setting(given, 10**5, k)[1] for k in (1, 60, 90)] == [
    60,
    60,
    90,
  ]


def test_settings_between_and_past_the_depths():
  settings = {
    "leaves": 475,
    "depths": [10, 20, 50, 100],
    "leaves_to_search": [10, 14, 25, 40],
    "reorder": [30, 40, 150, 300],
  }
  ask = lambda k: tuner.choose_setting(settings, 10_000, k)
  assert ask(1) == ask(10) == (10, 30)
  assert ask(11) == ask(20) == (14, 40)
  assert ask(51) == ask(100) == (40, 300)
  assert ask(200) == (61, 600)  # 40 · 2^log10(4), 300 · 2
  assert ask(9000) == (475, 10_000)
  asked = [ask(k) for k in range(1, 2000)]
  for knob in zip(*asked, strict=True):
    assert list(knob) == sorted(knob)
  assert all(reorder >= k for k, (_, reorder) in enumerate(asked, 1))


def test_an_older_index_is_searched_as_it_was():
  settings = {"leaves": 475, "leaves_to_search": 60, "reorder": 100}
  assert tuner.choose_setting(settings, 10**5, 10) == (60, 100)
  assert tuner.choose_setting(settings, 10**5, 100) == (60, 400)
