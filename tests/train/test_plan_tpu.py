"""The train step, compiled by a TPU's own compiler: `make plan-test`.

No TPU is needed, libtpu is: pip install 'fs_jax[aot]'.
"""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fs_jax import config
from fs_jax.machine import hardware, sharding
from fs_jax.runs import checksums
from fs_jax.train import step as steps
from fs_jax.train.plan import hlo, plan, table
from tests.support import lowered, synthetic

if importlib.util.find_spec("libtpu") is None:
  pytest.skip(
    "libtpu is not installed; `make plan-test` brings it",
    allow_module_level=True,
  )


@pytest.fixture(autouse=True, scope="module")
def as_in_a_run():
  """With the optimisations that conftest.py leaves out."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


def compiled(cfg):
  """(the program, its memory, its text, what it sends)."""
  described = plan.describe_devices(cfg.mesh.topology, cfg.mesh.slices)
  on = sharding.mesh(cfg.mesh, described)
  made = steps.program(cfg, synthetic.VOCABULARY, on)
  step = made.step.lower(made.state, made.frozen, made.batch).compile()
  text = step.as_text()
  return (
    made,
    step.memory_analysis(),
    text,
    hlo.find_collectives(hlo.parse(text)),
  )


def split_bytes(made):
  """Of the parameters that fsdp splits, whole, in bfloat16."""
  leaves = jax.tree.leaves(made.state.params)
  split = [x for x in leaves if not x.sharding.is_fully_replicated]
  return sum(2 * x.size for x in split)


@pytest.mark.parametrize("stage", ["fast", "distill"])
def test_a_sharded_ring_on_eight_chips(stage):
  """With a moving mean; of distill, with its judge in the same step."""
  cfg = lowered.meant_for(lowered.step(stage), "v5e:2x4")
  made, memory, text, found = compiled(cfg)
  assert made.state.ema is not None
  assert bool(made.frozen) == (stage == "distill")
  assert lowered.tables(text, lowered.B) == set()
  ring = [c for c in found if "ppermute" in c.source]
  assert {c.kind for c in ring} == {"collective-permute"}
  assert {c.times for c in ring} == {8}
  gathers = [c for c in found if c.kind == "all-gather"]
  assert any(c.group == 2 for c in gathers)
  assert sum(c.bytes for c in gathers) >= split_bytes(made) / 2
  assert 0 < memory.peak_memory_in_bytes < hardware.tpu("v5e").hbm
  assert hlo.count_cycles(hlo.parse(text)) > 0


@pytest.mark.parametrize("stage", ["fast", "slow"])
def test_validation_takes_no_more_than_the_step(stage):
  """Of 256 pictures, or of all pairs of 64, beside the state of training."""
  cfg = lowered.meant_for(lowered.step(stage), "v5e:2x4")
  made = plan.plan("x", cfg)
  assert made.fits and made.times is not None
  assert not made.validates
  of_step, validated = made.memory, made.validation
  assert validated.fits
  assert 0 < validated.arguments < validated.needed
  state = of_step.arguments
  # Small models: what is scored is a few MB, all pairs at once were more.
  assert validated.needed - state < of_step.needed - state + 2**22


def test_the_plain_loss_holds_a_table_of_pairs():
  """The control of the test above."""
  cfg = lowered.meant_for(lowered.step(chunk=0), "v5e:2x4")
  _, _, text, found = compiled(cfg)
  assert lowered.tables(text, lowered.B)
  assert not [c for c in found if "ppermute" in c.source]


def test_two_slices_send_between_them():
  cfg = lowered.meant_for(lowered.step(), "v5e:2x2", slices=2)
  made = plan.plan("two", cfg)
  assert made.fits
  assert (made.devices, made.mesh["data"]) == (8, 4)
  between = made.collectives[hlo.SLICES]
  # At least the gradient of what a device holds crosses, in 2 or 4 bytes.
  assert between > made.parameters / 2 * 2
  assert made.times is not None
  assert made.times.network > 0


def test_what_does_not_fit_is_told_what_would(tmp_path, capsys):
  """Of 1.2 billion parameters four copies are 18 GiB; halved they fit.

  Layers are made again already, and eight rows are too few for parts: either
  would be the first advice.
  """
  stack = config.Stack(4096, 6, 32, 16_384, remat="full")
  cfg = synthetic.cfg(
    "fast",
    fast=config.Fast(
      config.Vision(stack, 8, "mean"),
      config.Text(synthetic.stack(remat="full")),
    ),
    mesh=config.Mesh(topology="v5e:2x4"),
    optim={"ema": 0.9},
  )
  made = table.plan_one("configs/big.py:fast", cfg, str(tmp_path))
  assert not made.fits
  assert made.times is None
  hbm = hardware.tpu("v5e").hbm
  assert made.memory.available == pytest.approx(hbm, rel=0.01)
  assert hbm < made.memory.needed < 10 * hbm
  said = capsys.readouterr().out
  needed, available = re.search(
    r"DOES NOT FIT: needs ([\d.]+) of ([\d.]+) GiB a chip", said
  ).groups()
  assert float(needed) > float(available) == 15.75
  fitting = said.partition("this fits")[2]
  assert "  --config.mesh.fsdp=2\n" in fitting
  assert re.search(r"memory +fits: ", fitting)


def test_a_sum_of_an_array_takes_no_memory():
  """Of every checkpoint, of a state that may leave none."""
  on = sharding.mesh(config.Mesh(4, 2), plan.describe_devices("v5e:2x4"))
  for spec in ((), ("data",), (None, "fsdp"), ("data", "fsdp")):
    placed = NamedSharding(on, PartitionSpec(*spec))
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.float32, sharding=placed)
    compiled = checksums._sum.lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e6
    assert "all-gather" not in compiled.as_text()


def test_a_shape_that_no_tpu_has():
  with pytest.raises(ValueError, match=r"one that libtpu knows.*'v5e:3x5'"):
    plan.describe_devices("v5e:3x5")
