"""Figures: what is said, what is not, and nothing of what was not measured."""

import pytest

from fs_jax.evaluate.page import sections

ROW = {
  "name": "a<b",
  "R@1": [30.0, 28.0, 32.0],
  "R@5": None,
  "R@10": None,
  "ms_per_query": 2.0,
}


def test_a_table_escapes_and_leaves_out_what_is_missing():
  bare = sections.table({"rows": [ROW]})
  assert "a&lt;b" in bare and "a<b" not in bare
  assert "30.0<small>28.0 to 32.0</small>" in bare
  assert "times faster" not in bare
  assert "look-alikes" not in bare
  faster = sections.table(
    {"rows": [ROW], "times_faster_than_slow": {"a<b": 12.0}, "chance": 25.0}
  )
  assert "<td>12</td>" in faster
  assert "chance 25.0" in faster


@pytest.mark.parametrize(
  ("name", "does"),
  [
    ("fast", "one vector a text and a picture"),
    ("rerank@20", "the distilled Fast finds, Slow orders the first 20"),
    ("fast_rerank@5", ">Fast finds, Slow orders the first 5"),
  ],
)
def test_a_table_says_what_a_ranker_does(name, does):
  assert does in sections.table({"rows": [ROW | {"name": name}]})


@pytest.mark.parametrize(
  ("interval", "said"),
  [
    ([2.0, 1.0, 3.0], "R@1 of <b>x&amp;</b> is 2.0 points above <b>y</b> ("),
    ([-2.0, -3.0, -1.0], "is 2.0 points below <b>y</b> (95 % interval −3.0"),
    ([1.0, -1.0, 3.0], "No difference is shown between <b>x&amp;</b> and"),
  ],
)
def test_a_pair_is_a_difference_where_its_interval_leaves_0_out(interval, said):
  report = {"paired": [{"name": "x& - y", "R@1": interval}]}
  assert said in sections.paired(report)


def test_nothing_measured_is_no_section():
  rows = [ROW | {"ms_per_query": None}]
  assert sections.trade({"rows": rows}) == ""
  assert sections.paired({}) == ""
  assert sections.training({}) == ""
  assert sections.training({"fast": [{"step": 1, "split": "train"}]}) == ""


def test_training_leaves_out_what_is_not_finite():
  losses = (3.0, float("nan"), 2.0)
  lines = [
    {"step": i, "split": "train", "loss": loss} for i, loss in enumerate(losses)
  ]
  drawn = sections.training({"fast": lines})
  assert "fast: train loss, last 2" in drawn
  assert "nan" not in drawn


def test_times_add_up():
  drawn = sections.times({"seconds": {"a": 1.5, "b": 6.0}, "seed": 7})
  assert "<td>7.5</td>" in drawn
  assert "width:25.0%" in drawn
  assert "Device: not recorded. Seed: 7." in drawn


def test_a_report_adds_its_limits():
  drawn = sections.limits({"gallery": 1000, "limits": ["only <cats>"]})
  assert "1,000 pictures" in drawn
  assert "only &lt;cats&gt;" in drawn


def test_a_minus_is_no_hyphen():
  assert sections.minus(-1.25, ".1f") == "−1.2"
  assert sections.minus(1.0, "+.1f") == "+1.0"
