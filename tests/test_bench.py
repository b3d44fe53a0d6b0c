"""The benchmarks measure what they say; how fast it is, no test asks."""

import json

import pytest

from fs_jax import bench
from tests import programs

WAYS = {"plain", "chunked", "ring"}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_tiles_take_less_memory_than_all_pairs(kind):
  cost = bench.loss_cost(512, embed=8, chunk=32, kind=kind, runs=1)
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
  assert bench.free_bytes() > 2**20
  monkeypatch.setattr(bench, "free_bytes", lambda: 1000)
  cost = bench.loss_cost(64, embed=8, chunk=32, runs=1)
  assert cost["plain_bytes"] > 1000 and "plain_seconds" not in cost
  assert "chunked_bytes_of_plain" in cost
  assert "chunked_seconds_of_plain" not in cost


def test_program_prints_bytes_seconds_and_ratios():
  sizes = ("--batch=64", "--embed=8", "--chunk=16")
  done = programs.launch("bench", "loss", "--loss=sigmoid", *sizes)
  assert done.code == 0, done.err
  cost = json.loads(done.out.partition("\n")[2])
  assert cost["chunked_bytes_of_plain"] > 0
  assert "ring_bytes" not in cost  # on one device


def test_an_unknown_benchmark_is_refused():
  done = programs.launch("bench", "lost")
  assert done.code == 2
  assert "must be rerank, search, loss, train or serve; got 'lost'" in done.err
