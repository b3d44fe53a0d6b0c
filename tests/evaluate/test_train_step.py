"""The benchmark beside a peer: equal work, turns, messages; never a time."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from fs_jax import configdict
from fs_jax.evaluate.speed import baseline, pieces, train_step
from fs_jax.machine import sharding
from fs_jax.models import flops
from fs_jax.train import step
from tests.support import inprocess, synthetic

pytestmark = pytest.mark.slow

# A peer that says what it is asked; `do: leave` ends it, as a crash would.
STAND_IN = """
import json, sys
for line in sys.stdin:
  asked = json.loads(line)
  if asked["do"] == "leave":
    print("out of memory", file=sys.stderr)
    sys.exit(9)
  if asked["do"] == "fail":
    answer = {"error": "no such piece"}
  elif asked["do"] == "make":
    answer = {"versions": "stand-in 1", "device": "cpu", "threads": 1,
              "parameters": 5, "flops": 1e9, "note": "it does nothing",
              "asked": asked}
  else:
    answer = {"seconds": [0.5] * asked["runs"]}
  print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def command(tmp_path):
  path = tmp_path / "stand_in.py"
  path.write_text(STAND_IN)
  return [sys.executable, "-P", str(path)]


def tiny(stage="fast"):
  fast = train_step.fast_config(1, 4, "float32").fast
  cut = {"width": 16, "heads": 2, "hidden": 32}
  vision = dataclasses.replace(
    fast.vision, stack=dataclasses.replace(fast.vision.stack, **cut), patch=8
  )
  text = dataclasses.replace(
    fast.text, stack=dataclasses.replace(fast.text.stack, **cut)
  )
  return synthetic.cfg(
    stage,
    fast=dataclasses.replace(fast, vision=vision, text=text, embed=8),
    tokens={"vocabulary": synthetic.VOCABULARY},
    optim={"clip": 0.0},
    train={"batch_size": 4},
  )


class Counting:
  """A side that takes no time and remembers what it was asked."""

  def __init__(self, log, name, seconds):
    self.log, self.name, self.seconds = log, name, seconds

  def run(self, what, runs):
    self.log.append((self.name, what, runs))
    return [self.seconds] * runs


def test_sizes_are_those_of_open_clips_b_16():
  cfg = train_step.fast_config(12, 32, "float32")
  asked = train_step.describe_model(cfg)
  assert asked["vision"] == {
    **{"width": 768, "layers": 12, "heads": 12, "hidden": 3072}
  }
  assert asked["text"] == {
    **{"width": 512, "layers": 12, "heads": 8, "hidden": 2048}
  }
  assert (asked["image"], asked["patch"], asked["embed"]) == (224, 16, 512)
  assert (asked["vocabulary"], asked["length"]) == (49_408, 77)
  assert asked["batch"] == 32 and asked["compute"] == "float32"
  json.dumps(asked)  # it travels


def test_flops_are_those_that_torch_counts_of_open_clip():
  # What baseline_open_clip answered: open_clip 3.3.0, torch 2.13.0.
  cfg = train_step.fast_config(2, 8, "float32")
  counted = 167_146_930_176
  ours = flops.train_step(cfg, cfg.tokens.vocabulary).model
  assert ours == pytest.approx(counted, rel=1e-4)


def test_parameters_are_those_of_open_clip_but_for_what_the_docstring_says():
  cfg = train_step.fast_config(2, 8, "float32")
  on = sharding.mesh(cfg.mesh, jax.devices()[:1])
  made = step.program(cfg, cfg.tokens.vocabulary, on)
  ours = sum(x.size for x in jax.tree.leaves(made.state.params))
  biases, position_of_frames, position_of_class = 2 * 512 + 768, 768, 768
  assert ours - 47_216_641 == biases + position_of_frames - position_of_class


def test_the_step_is_the_one_of_training():
  cfg = tiny()
  on = sharding.mesh(cfg.mesh, jax.devices()[:1])
  made = step.program(cfg, cfg.tokens.vocabulary, on)
  state = step.init(cfg, made)
  for mine, theirs in zip(
    *(jax.tree.leaves(x) for x in (state, made.state)), strict=True
  ):
    assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
    assert mine.sharding == theirs.sharding
  called = pieces.make(cfg, made)
  assert set(called) == set(pieces.count_calls(cfg))
  losses = [float(called["step"]()) for _ in range(3)]
  assert losses[-1] < losses[0]  # each call goes on from the last
  assert int(called["optimiser"]().step) == 3


def test_every_piece_runs_in_bfloat16():  # in float32: the program, below
  ours = train_step.Ours(dataclasses.replace(tiny(), compute="bfloat16"))
  for name in pieces.count_calls(tiny()):
    assert len(ours.run(name, 2)) == 2, name
    for leaf in jax.tree.leaves(ours.pieces[name]()):
      assert np.isfinite(np.asarray(leaf, np.float32)).all(), name


def test_stage_slow_has_its_step_only():
  cfg = synthetic.cfg("slow", tokens={"vocabulary": synthetic.VOCABULARY})
  names = list(pieces.count_calls(cfg))
  assert names == list(pieces.WHOLE)
  ours = train_step.Ours(cfg)
  rows = list(train_step.compare(cfg, ours, None, 1))
  assert [row.name for row in rows] == names
  found = train_step.summarise(cfg, ours, rows)
  assert found["examples_per_second"] > 0 and "ratio" not in found
  assert train_step.slow_config(4, 8, "bfloat16").slow.levels == 2


def test_sides_take_turns_and_make_as_many_calls():
  log = []
  ours, theirs = Counting(log, "a", 0.1), Counting(log, "b", 0.05)
  row = next(train_step.compare(tiny(), ours, theirs, 3))
  assert [name for name, _, _ in log] == ["a", "b"] * 4
  assert len({runs for _, _, runs in log[2:]}) == 1
  assert log[-1][2] == 6  # half a second of the slower one, and one before
  assert row.ratio == (0.5, 0.5, 0.5)


def test_ratio_is_by_round():
  row = train_step.Timed("step", 1, [1.0, 2.0, 1.0], [2.0, 2.0, 3.0])
  assert row.ratio == (2.0, 1.0, 3.0)
  assert "2.00 (1.00 to 3.00)" in train_step.format_line(row, row)
  alone = train_step.Timed("mlp", 4, [0.1], [])
  assert train_step.format_line(alone, row._replace(peer=[])).endswith("40%")


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100"])
def test_mfu_is_told_where_the_peak_is_known(kind):
  side = Counting([], "a", 1.0)
  side.facts = {"flops": 989e12 / 4, "device": kind}
  row = train_step.Timed("step", 1, [0.5], [1.0])
  found = train_step.summarise(tiny(), side, [row])
  assert found["ratio"] == 2.0
  assert found["examples_per_second"] == 8.0
  assert found["peer_tflops_per_second"] == 989 / 4
  assert found.get("mfu") == (None if kind == "cpu" else 0.5)


def test_a_peer_answers_line_by_line(command):
  with baseline.start(command, "mend it") as ask:
    theirs = train_step.Theirs(ask, tiny(), compiled=False)
    assert theirs.facts["asked"]["vision"]["width"] == 16
    assert theirs.run("step", 3) == [0.5] * 3
    with pytest.raises(ValueError, match=r"'no such piece'\. mend it"):
      ask("fail")
    with pytest.raises(ValueError, match=r"code 9 and 'out of memory'\. mend"):
      ask("leave")


def test_program_prints_both_sides(command, tmp_path, monkeypatch):
  monkeypatch.setitem(train_step.CONFIGS, "fast", lambda *_: tiny())
  monkeypatch.setattr(train_step, "PEER", command[-1])
  done = inprocess.launch(
    "bench", "train", "--rounds=2", f"--peer={sys.executable}"
  )
  assert done.code == 0, done.err
  assert "peer: stand-in 1 on cpu, 1 threads; 5 parameters" in done.out
  assert "  it does nothing" in done.out
  for name in pieces.count_calls(tiny()):
    assert f"\n{name} " in done.out
  found = json.loads(done.out[done.out.index("\n{") :])
  assert found["ratio_min"] <= found["ratio"] <= found["ratio_max"]


def test_without_the_peers_environment_it_says_what_to_run(tmp_path):
  gone = tmp_path / "bin/python"
  done = inprocess.launch("bench", "train", f"--peer={gone}")
  assert done.code == 2
  assert f"got '{gone}', which does not exist. run `make bench-train`" in (
    done.err
  )


def test_an_environment_without_torch_says_what_to_run():
  done = inprocess.launch("bench", "train", f"--peer={sys.executable}")
  assert done.code == 2
  assert "No module named 'torch'" in done.err
  assert "run `make bench-train`, or give --peer= to time ours" in done.err


def test_configs_survive_the_command_line():
  for make in train_step.CONFIGS.values():
    cfg = make(2, 8, "bfloat16")
    assert configdict.parse(configdict.edit(cfg)) == cfg
