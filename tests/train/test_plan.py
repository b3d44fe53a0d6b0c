"""What a step needs and takes: the sums, the refusals, the ring it must be."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from fs_jax import config
from fs_jax.machine import hardware, sharding
from fs_jax.train import loop, step
from fs_jax.train.plan import hlo, plan
from tests.support import lowered, synthetic

V5E = hardware.tpu("v5e:2x4")


def collective(kind, size, group=4, backward=False):
  return hlo.Collective(kind, size, group, 1, backward, "")


def times(*found, sides=(16, 16), flops=0.0, memory=0.0, cycles=0.0):
  return plan.estimate_times(V5E, sides, flops, memory, cycles, list(found))


def test_each_part_of_a_chip_is_busy_for_as_long_as_its_peak_takes():
  made = times(flops=197e12, memory=2 * 819e9, cycles=3 * 1.5e9)
  assert made == (1, 2, 0, 0, 3)
  assert (made.step, made.bound) == (3, "cycles")


def test_a_collective_goes_both_ways_around_an_axis():
  made = times(collective("all-gather", 50e9), collective("all-reduce", 50e9))
  assert made.interconnect == 1
  assert made.bound == "interconnect"


def test_a_group_larger_than_a_side_uses_all_axes():
  one = times(collective("all-reduce", 100e9, group=16)).interconnect
  all_axes = times(collective("all-reduce", 100e9, group=256)).interconnect
  assert (one, all_axes) == (1, 0.5)


def test_a_side_whose_ends_do_not_meet_is_gone_along_one_way():
  """A v5e closes at 16; where it does not, chips at the ends have one link."""
  found = collective("all-reduce", 100e9, group=8)
  assert times(found, sides=(2, 4)).interconnect == 1
  gathered = collective("all-gather", 50e9, group=4)
  assert times(gathered, sides=(2, 4)).interconnect == 1
  v5p = hardware.tpu("v5p:4x4x4")
  cube = plan.estimate_times(v5p, (4, 4, 4), 0, 0, 0, [gathered])
  small = plan.estimate_times(v5p, (2, 2, 1), 0, 0, 0, [gathered])
  assert small.interconnect == 50e9 / (3 * v5p.link)
  assert cube.interconnect == 50e9 / (2 * v5p.link)


def test_permutations_each_way_share_nothing():
  forward = collective("collective-permute", 50e9)
  backward = collective("collective-permute", 50e9, backward=True)
  assert times(forward).interconnect == 1
  assert times(forward, forward).interconnect == 2
  assert times(forward, backward).interconnect == 1


def test_what_goes_between_slices_takes_the_network():
  made = times(collective(hlo.SLICES, 3.125e9), collective("all-gather", 1e9))
  assert made.network == 1
  assert made.interconnect == 0.01
  assert made.bound == "network"


def test_sides():
  assert plan.torus_sides("v5e:16x16") == (16, 16)
  assert plan.torus_sides("v5p:4x4x8") == (4, 4, 8)


@pytest.mark.parametrize(
  ("said", "needed", "available"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G "
      "of 15.75G hbm. Exceeded hbm capacity by 1.75G.",
      17.5 * 2**30,
      15.75 * 2**30,
    ),
    (
      "RESOURCE_EXHAUSTED: The memory required for HLO temporaries (81.50G) "
      "exceeds available HBM (15.75G).",
      81.5 * 2**30,
      15.75 * 2**30,
    ),
    (
      "RESOURCE_EXHAUSTED: Used 1.25T of 960.00M hbm",
      1.25 * 2**40,
      960 * 2**20,
    ),
    ("RESOURCE_EXHAUSTED: and no figures", 1001, 1000),
  ],
)
def test_a_refusal_says_what_was_needed(said, needed, available):
  found = plan.parse_refusal(said, 1000)
  assert found == (0, needed, available)
  assert not found.fits


def test_another_error_of_the_compiler_is_no_refusal():
  with pytest.raises(RuntimeError, match="INTERNAL: Used"):
    plan.parse_refusal("INTERNAL: Used 17.50G of 15.75G hbm", 1000)


def test_devices_need_the_compiler(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"libtpu: .*got a machine without.*aot"):
    plan.describe_devices("v5e:2x4")
  with pytest.raises(ValueError, match=r"must begin with one of v4, v5e.*'v9"):
    plan.describe_devices("v9:2x4")


@pytest.mark.parametrize(
  ("topology", "slices", "asked"),
  [
    ("v5e:2x4", 1, {}),
    ("v5e:2x4", 2, {"num_slices": 2}),
    ("v4:2x2x1", 1, {"chip_config_name": "megacore"}),
  ],
)
def test_devices_are_asked_for_by_name(monkeypatch, topology, slices, asked):
  def describe(**given):
    assert given == {"platform": "tpu", "topology_name": topology} | asked
    raise RuntimeError("NOT_FOUND: no such thing\nand more")

  monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
  monkeypatch.setattr(plan.topologies, "get_topology_desc", describe)
  with pytest.raises(
    ValueError, match=rf"got '{topology}' \(NOT_FOUND: no such"
  ):
    plan.describe_devices(topology, slices)


def test_a_plan_is_for_a_topology():
  with pytest.raises(ValueError, match=r"mesh.topology: .* got none"):
    plan.plan("x", lowered.step())


def made(**changes):
  """A plan by hand."""
  values = {
    "config": "configs/x.py:fast",
    "topology": "v5e:2x4",
    "slices": 1,
    "devices": 8,
    "mesh": {"data": 4, "fsdp": 2, "model": 1},
    "batch_size": 1000,
    "accumulate": 1,
    "parameters": 10**6,
    "memory": plan.Memory(2**30, 2**31, V5E.hbm),
    "validation": plan.Memory(2**30, 3 * 2**30, V5E.hbm),
    "validates": False,
    "model_flops": 197e12 * 8,
    "hardware_flops": 2 * 197e12 * 8,
    "collectives": {"all-gather": 1e9, hlo.SLICES: 2e6},
    "times": plan.Times(2, 1, 0.5, 0.0, 1.5),
    "steps": 43200,
    "compile_seconds": 1.5,
    "versions": {"jax": "0"},
    "program": "p",
  }
  return plan.Plan(**values | changes)


def test_rates_of_a_plan():
  it = made()
  assert it.fits
  assert it.mfu == 0.5
  assert it.examples_per_second == 500
  assert it.days == 1
  assert it.device_hours == 8 * 24


def test_a_plan_that_does_not_fit_has_no_rates():
  it = made(memory=plan.Memory(0, V5E.hbm + 1, V5E.hbm), times=None)
  assert not it.fits
  assert it.mfu is it.examples_per_second is it.days is it.device_hours is None


def test_a_plan_fits_where_all_fits_that_its_config_asks_for():
  large = plan.Memory(2**30, V5E.hbm + 1, V5E.hbm)
  assert made(validation=large).fits
  assert made(validation=large).needed == 2**31
  asked = made(validation=large, validates=True)
  assert not asked.fits
  assert asked.needed == V5E.hbm + 1
  assert made(validates=True).fits
  assert made(validation=None, validates=True).fits  # the step is who decides


@pytest.mark.parametrize("given", [None, plan.Times(2, 1, 0.5, 0.0, 1.5)])
def test_a_plan_comes_back_from_json(given):
  it = made(times=given)
  back = plan.Plan.from_json(json.loads(json.dumps(it.to_json())))
  assert back == it
  assert isinstance(back.memory, plan.Memory)
  assert isinstance(back.validation, plan.Memory)
  bare = json.loads(json.dumps(made(validation=None).to_json()))
  assert plan.Plan.from_json(bare).validation is None
  assert it.to_json()["mfu"] == it.mfu


def on_eight(cfg):
  return step.program(cfg, synthetic.VOCABULARY, sharding.mesh(cfg.mesh))


def compiled(cfg):
  made = on_eight(cfg)
  return made, made.step.lower(made.state, made.frozen, made.batch).compile()


def test_the_step_of_a_sharded_ring_holds_no_table_of_pairs():
  """On data=4 x fsdp=2: parameters are gathered, texts travel."""
  made, step = compiled(lowered.step())
  text = step.as_text()
  found = hlo.find_collectives(hlo.parse(text))
  assert lowered.tables(text, lowered.B) == set()
  permuted = [c for c in found if c.kind == "collective-permute"]
  assert {c.times for c in permuted if "ppermute" in c.source} == {8}
  assert all(c.group == 2 for c in found if c.kind == "all-gather")
  # What fsdp splits is gathered: no less than all of it once.
  split = sum(
    x.size * 4
    for x in jax.tree.leaves(made.state.params)
    if not x.sharding.is_fully_replicated
  )
  gathered = hlo.sum_by_kind(found)["all-gather"]
  assert split
  assert gathered >= split / 2


def test_the_plain_loss_holds_one():
  """The control of the test above: its search finds what is there."""
  _, step = compiled(lowered.step(chunk=0))
  text = step.as_text()
  assert lowered.tables(text, lowered.B)
  found = hlo.find_collectives(hlo.parse(text))
  assert not [c for c in found if "ppermute" in c.source]


def test_plan_and_fit_lower_the_same_step(monkeypatch, tmp_path):
  """Neither makes one of its own: both take what `step.program` returns."""

  class Told(Exception):
    pass

  class Jitted:
    def lower(self, *args):
      lowered_with.append(args)
      raise Told

  lowered_with = []
  program = step.program

  def spied(*args):
    made = program(*args)._replace(step=Jitted())
    programs.append(made)
    return made

  programs = []
  monkeypatch.setattr(step, "program", spied)
  monkeypatch.setattr(plan, "describe_devices", lambda *_: jax.devices())
  cfg = lowered.meant_for(lowered.step(), "v5e:2x4")
  cfg = dataclasses.replace(
    cfg,
    tokens=config.Tokens(
      length=synthetic.LENGTH, vocabulary=synthetic.VOCABULARY
    ),
  )
  with pytest.raises(Told):
    plan.plan("x", cfg)
  words = " ".join(map(str, range(synthetic.VOCABULARY - 4)))
  tokenizer = loop.tokenizers.train([words], cfg.tokens)
  with pytest.raises(Told):
    loop.fit(cfg, tmp_path, tokenizer, lambda start, rows: iter(()))
  assert len(programs) == len(lowered_with) == 2
  for made, args in zip(programs, lowered_with, strict=True):
    assert args == (made.state, made.frozen, made.batch)
  assert jax.tree.all(
    jax.tree.map(
      lambda a, b: (
        (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
      ),
      *lowered_with,
    )
  )
