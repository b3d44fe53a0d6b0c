"""FLOPs counted from the config against those of the compiled step."""

import dataclasses
import math
import re
from typing import Any

import jax
import pytest

from fs_jax import config
from fs_jax.machine import sharding
from fs_jax.models import flops
from fs_jax.train import step as steps
from fs_jax.train.plan import hlo, plan
from tests.support import synthetic

pytestmark = pytest.mark.slow


def heavy(stage, remat="none", layers=2, **fields):
  """A config in which matrix products are nearly all there is to do."""
  stack = lambda n: config.Stack(128, n, 4, 512, remat=remat)
  vision = config.Vision(stack(layers), patch=8)
  slow = config.Slow(
    vision, stack(2 * layers), levels=2, widths=(64,), stem=64, d_mem=64
  )
  defaults: dict[str, Any] = {
    "fast": config.Fast(vision, config.Text(stack(layers)), embed=128),
    "slow": None if stage == "fast" else slow,
    "data": {"image_size": 64},
    "tokens": config.Tokens(vocabulary=2048, length=32),
  }
  return synthetic.cfg(stage, **defaults | fields)


def parts(cfg):
  return flops.train_step(cfg, cfg.tokens.vocabulary).parts


def products(program):
  """FLOPs of all matrix products, each as often as its loops run it."""
  total = 0
  for op, inside, times, _ in hlo.walk(program):
    assert op.opcode not in ("convolution", "custom-call")
    if op.opcode == "dot":
      axes = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", op.text)[1]
      left = program.computations[inside][op.operands[0]].shapes[0].dims
      summed = math.prod(left[int(axis)] for axis in axes.split(","))
      total += times * 2 * math.prod(op.shapes[0].dims) * summed
  return total


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("stage", ["fast", "slow", "distill"])
def test_the_count_is_what_xla_counts(stage, remat):
  ours, theirs = plan.count_flops(heavy(stage, remat))
  assert ours < theirs < 1.04 * ours  # which counts sums and the like too


def test_the_count_of_matching_is_what_xla_counts():
  """Three pairs a row: its own, with another text, with another visual."""
  slow = dataclasses.replace(heavy("slow").slow, loss="matching")
  cfg = heavy("slow", slow=slow, init=config.Init(teacher="fast"))
  ours, theirs = plan.count_flops(cfg)
  assert ours < theirs < 1.05 * ours


def test_the_count_is_that_of_the_loops_of_deep_stacks():
  """XLA counts a loop's body once; here each product runs as often as it does.

  Deep enough to be loops, of layers and of parts of the batch.
  """
  cfg = heavy("fast", "full", layers=5, train={"accumulate": 2})
  text = dataclasses.replace(cfg.fast.text.stack, remat="dots")
  fast = dataclasses.replace(cfg.fast, text=config.Text(text))
  cfg = dataclasses.replace(cfg, fast=fast)
  on = sharding.mesh(config.Mesh(), jax.devices()[:1])
  made = steps.program(cfg, cfg.tokens.vocabulary, on)
  step = made.step.lower(made.state, made.frozen, made.batch).compile()
  counted = flops.train_step(cfg, cfg.tokens.vocabulary)
  found = products(hlo.parse(step.as_text()))
  assert found == pytest.approx(counted.hardware, rel=1e-3)
  assert made.flops == counted.model < counted.hardware


def test_full_remat_adds_one_forward_of_each_block():
  for stage in ("fast", "slow"):
    plain, again = parts(heavy(stage)), parts(heavy(stage, "full"))
    for name, part in again.items():
      assert part[:2] == plain[name][:2]
      assert plain[name].again == 0
    stack = heavy(stage).fast.text.stack
    cfg = heavy(stage, "full")
    rows = cfg.train.batch_size
    # Two layers of 64 patches: forward without the last product, which no
    # gradient asks for.
    width, hidden, tokens = stack.width, stack.hidden, 64
    block = 4 * width**2 + width * hidden + 2 * width * tokens
    assert again["vision"].again == 2 * 2 * rows * tokens * block


def test_a_frozen_tower_has_a_forward_pass_only():
  frozen = {"freeze": (".*/vision/.*",)}
  for stage, of in (("fast", "fast"), ("slow", "slow"), ("distill", "fast")):
    plain = parts(heavy(stage, "full"))
    held = parts(heavy(stage, "full", optim=frozen))
    still = {k for k, p in held.items() if p != plain[k]}
    wanted = {"vision", "lists vision"} if stage == "distill" else {"vision"}
    assert still == wanted, of
    for name in wanted:
      assert held[name] == (plain[name].forward, 0, 0)


def test_parts_of_a_contrastive_batch_are_encoded_twice():
  half = {"train": {"accumulate": 2}}
  plain, again = parts(heavy("fast")), parts(heavy("fast", **half))
  for name in ("vision", "text"):
    assert again[name] == plain[name]._replace(again=plain[name].forward)
  assert again["loss"] == plain["loss"]  # which meets all rows at once
  # Captioning is linear in its rows: no pass comes first.
  assert parts(heavy("slow")) == parts(heavy("slow", **half))


def test_the_ring_makes_its_logits_twice():
  tables = heavy("fast")
  ring = dataclasses.replace(
    tables, fast=dataclasses.replace(tables.fast, chunk=4)
  )
  loss = parts(tables)["loss"]
  assert parts(ring)["loss"] == loss._replace(again=loss.forward)


@pytest.mark.parametrize("stage", ["fast", "slow", "distill"])
def test_towers_grow_with_the_batch_and_tables_with_its_square(stage):
  one = parts(heavy(stage))
  two = parts(heavy(stage, train={"batch_size": 16}))
  own = set(one) - {"loss", "teacher"}
  for name in own:
    # Lists of a distillation are their own number.
    factor = 1 if name.startswith("lists") else 2
    assert two[name] == tuple(factor * x for x in one[name]), name
  if "loss" in one:
    assert two["loss"] == tuple(4 * x for x in one["loss"])
  if "teacher" in one:
    assert two["teacher"] == one["teacher"]
    assert one["teacher"].backward == one["teacher"].again == 0


def test_frames_and_captions_cost_what_they_are():
  one = parts(heavy("fast"))
  film = parts(heavy("fast", data={"image_size": 64, "frames": 4}))
  assert film["text"] == one["text"]
  assert 3.9 < film["vision"].forward / one["vision"].forward < 4
  said = parts(heavy("fast", data={"image_size": 64, "captions_per_visual": 2}))
  assert said["text"] == tuple(2 * x for x in one["text"])
  assert said["vision"] == one["vision"]
  # Visuals with texts, not pairs with pairs.
  assert said["loss"] == tuple(2 * x for x in one["loss"])


def test_the_model_counts_nothing_twice():
  plain = flops.train_step(heavy("fast"), 2048)
  again = flops.train_step(heavy("fast", "full"), 2048)
  assert plain.model == plain.hardware == again.model < again.hardware
