"""The benchmarks measure what they say; how fast it is, no test asks."""

import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from fs_jax.evaluate.speed import timing
from tests.support import inprocess

ROOT = pathlib.Path(__file__).parents[2]

WAYS = {"plain", "chunked", "ring"}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_tiles_take_less_memory_than_all_pairs(kind):
  cost = timing.measure_loss(512, embed=8, chunk=32, kind=kind, runs=1)
  assert {f"{way}_{what}" for way in WAYS for what in ("bytes", "seconds")} < (
    cost.keys()
  )
  assert cost["plain_bytes"] >= 4 * 512**2
  assert cost["ring_bytes"] < cost["chunked_bytes"] < 4 * 512**2
  for way in ("chunked", "ring"):
    for what in ("bytes", "seconds"):
      ratio = cost[f"{way}_{what}"] / cost[f"plain_{what}"]
      assert cost[f"{way}_{what}_of_plain"] == ratio


def test_a_plain_loss_that_does_not_fit_gets_no_time(monkeypatch):
  assert timing.free_bytes() > 2**20
  monkeypatch.setattr(timing, "free_bytes", lambda: 1000)
  cost = timing.measure_loss(64, embed=8, chunk=32, runs=1)
  assert cost["plain_bytes"] > 1000 and "plain_seconds" not in cost
  assert "chunked_bytes_of_plain" in cost
  assert "chunked_seconds_of_plain" not in cost


def test_what_compiles_again_is_not_timed():
  sizes = itertools.count(1)
  again = jax.jit(lambda x: x + 1)
  with pytest.raises(RuntimeError, match=r"^growing: .* got 1 that took"):
    timing.median_seconds(
      lambda: again(np.ones(next(sizes))), 2, name="growing"
    )
  assert timing.median_seconds(lambda: again(np.ones(1)), 2, name="same") > 0


def test_pairs_and_searches_are_timed_without_compiling(monkeypatch):
  monkeypatch.setattr(timing, "_scann", lambda vectors: None)
  monkeypatch.setattr(timing, "RUNS", 2)
  found = timing.measure_search(150, width=8, queries=3)
  assert found["exact_qps_1_at_10"] > 0 and found["exact_recall_at_100"] == 1
  found = timing.measure_rerank(width=64, layers=1, words=4, tokens=4, pairs=2)
  assert found["pairs_per_second"] > 0


def test_benchmarks_have_one_clock():
  """The one that counts what is compiled."""
  # Those of the baseline run where this project is not installed.
  speed = ROOT / "fs_jax/evaluate/speed"
  modules = [*speed.glob("[!_b]*.py"), ROOT / "launch/bench.py"]
  assert len(modules) > 3
  for path in modules:
    assert "perf_counter" not in path.read_text(), path


def test_program_prints_bytes_seconds_and_ratios():
  sizes = ("--batch=64", "--embed=8", "--chunk=16")
  done = inprocess.launch("bench", "loss", "--loss=sigmoid", *sizes)
  assert done.code == 0, done.err
  cost = json.loads(done.out.partition("\n")[2])
  assert cost["chunked_bytes_of_plain"] > 0
  assert "ring_bytes" not in cost  # on one device


def test_an_unknown_benchmark_is_refused():
  done = inprocess.launch("bench", "lost")
  assert done.code == 2
  assert "must be rerank, search, loss, train or serve; got 'lost'" in done.err
