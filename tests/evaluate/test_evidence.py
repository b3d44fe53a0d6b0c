"""Evidence: verdicts are of each seed, and follow from its numbers alone."""

import copy
import json

import pytest

from fs_jax.evaluate.studies import checklist, evidence
from fs_jax.machine import manifest
from tests.support import synthetic

LATER = "fast_distilled - fast_longer, all 5120 captions"
NAMES = (
  "fast",
  "fast_longer",
  "fast_distilled",
  "slow",
  "fast_rerank@20",
  "rerank@20",
)
R1 = {"fast": 10, "fast_longer": 12, "fast_distilled": 20}


def good():
  """A report in which every claim holds, none by much."""
  rows = []
  for name in NAMES:
    value = R1.get(name, 40)
    hard = 30 if name.startswith("fast") and "@" not in name else 70
    rows.append(
      {
        "name": name,
        "R@1": [value, value - 5, value + 5],
        "hard_R@1": [hard, hard - 4, hard + 4],
      }
    )
  pairs = {
    "rerank@20 - slow": [-1.0, -3.0, 1.0],
    LATER: [2.0, 0.1, 4.0],
    "rerank@20 - fast_rerank@20": [0.0, -2.0, 2.0],
  }
  return {
    "rows": rows,
    "paired": [{"name": n, "R@1": v} for n, v in pairs.items()],
    "chance": 25.0,
    "gallery": 1000,
    "queries": 320,
    "times_faster_than_slow": {"rerank@20": 40.0},
    "seconds": {
      "fast": 10,
      "slow": 20,
      "weigh-fast": 5,
      "distill": 30,
      "fast_longer": 55,
    },
  }


def row(report, name):
  return next(r for r in report["rows"] if r["name"] == name)


def pair(report, name):
  return next(p for p in report["paired"] if p["name"] == name)


def low_rerank(report):
  row(report, "fast_rerank@20")["R@1"] = [20, 14, 26]


def low_hard(report):
  row(report, "fast_rerank@20")["hard_R@1"] = [29, 25, 33]


def below_slow(report):
  pair(report, "rerank@20 - slow")["R@1"][0] = -1.01


def slow_rerank(report):
  report["times_faster_than_slow"]["rerank@20"] = 39.9


def less_time(report):
  report["seconds"]["fast_longer"] = 54


def no_gain(report):
  pair(report, LATER)["R@1"][1] = 0.0


def worse_on_top(report):
  pair(report, "rerank@20 - fast_rerank@20")["R@1"][0] = -0.1


SPOILED = {
  low_rerank: {"a: fast_rerank@20 above", "a: and above"},
  low_hard: {"a: hard"},
  below_slow: {"b: rerank@20 within"},
  slow_rerank: {"b: at 0.8"},
  less_time: {"c: fast_longer had"},
  no_gain: {"c: fast_distilled above"},
  worse_on_top: {"c: rerank@20 at least"},
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda f: f.__name__)
def test_a_claim_falls_with_its_own_number_on_its_own_seed(spoil):
  bad = copy.deepcopy(good())
  spoil(bad)
  verdicts = evidence._verdicts([good(), bad])
  assert len(verdicts) == 8
  fallen = set()
  for claim, holds in verdicts.items():
    assert holds[0], claim
    if not holds[1]:
      fallen.add(claim)
  for start in SPOILED[spoil]:
    assert any(claim.startswith(start) for claim in fallen), start
  assert len(fallen) == len(SPOILED[spoil])


def test_the_table_says_what_was_charged():
  reports = [good(), good()]
  text = evidence._markdown(
    {
      "seeds": [3, 4],
      "verdicts": evidence._verdicts(reports),
      "minutes": 1.0,
      "device": "a machine",
      "reports": reports,
    }
  )
  lines = text.splitlines()
  assert lines[0].endswith("| seed 3 | seed 4 |")
  assert "| slow, its fit and distill together | 55 s | 55 s |" in lines
  assert "| fast | 10.0 [5.0, 15.0], 30.0 | 10.0 [5.0, 15.0], 30.0 |" in lines
  assert sum(line.endswith("| yes | yes |") for line in lines) == 8


def test_the_control_has_all_the_time_and_little_more(tmp_path):
  """4 steps a second at best: 55 seconds are 220 steps, and some to spare."""
  cfg = synthetic.cfg("fast", name="fast_longer", train={"batch_size": 8})
  (tmp_path / "fast").mkdir()
  lines = [{"examples_per_second": x} for x in (3.0, 32.0, 20.0)]
  lines.insert(1, {"R@1": 0.5})
  text = "\n".join(map(json.dumps, lines)) + "\n"
  (tmp_path / "fast" / "metrics.jsonl").write_text(text)
  done = checklist.Checklist(tmp_path)
  for number, (name, seconds) in enumerate(good()["seconds"].items()):
    said = {"seconds": seconds, "ended": number}
    path = tmp_path / "parts" / f"{name}.json"
    manifest.write_record(path, checklist.KIND, {"config": {"seed": 0}}, said)
    done.do(name, {"config": {"seed": 0}}, lambda: 1 / 0)
  longer = evidence._match_time(cfg, done)
  assert 220 < longer.train.steps < 240
  assert longer.train.batch_size == 8 and longer.name == "fast_longer"
  assert evidence._match_time(cfg, done) == longer
