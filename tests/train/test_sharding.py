"""Eight devices compute what one does, and each error names its cause.

EVERY_MESH=1 python -m pytest tests/train/test_sharding.py trains every stage
on each mesh.
"""

import dataclasses
import functools
import os
import re
import tempfile
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import PartitionSpec

from fs_jax import config, trees, types
from fs_jax.data import tokenizer as tokenizers
from fs_jax.machine import sharding
from fs_jax.runs import journal, layout, stages
from fs_jax.train import loop, optim, step, tasks
from tests.support import lowered, synthetic

pytestmark = pytest.mark.slow

MESHES = {
  "one": config.Mesh(1, 1, 1),
  "data=8": config.Mesh(8, 1, 1),
  "data=4 fsdp=2": config.Mesh(4, 2, 1),
  "data=2 fsdp=2 model=2": config.Mesh(2, 2, 2),
}


def cfg_of(stage, mesh, parts=1):
  # Dropout, and pictures hidden at random: a row's draw knows no mesh.
  slow = synthetic.slow(decoder=synthetic.stack(2, dropout=0.1), null_rate=0.3)
  if stage == "distill":  # the judge of the smallest kind
    slow = synthetic.slow(decoder=synthetic.stack(1), levels=1)
  return synthetic.cfg(
    stage,
    slow=None if stage == "fast" else slow,
    mesh=mesh,
    data={"captions_per_visual": 1 if stage == "distill" else 2},
    train={"steps": 3, "log_every": 1, "save_every": 99, "accumulate": parts},
  )


def batches(stage, start, rows):
  step = start
  while True:
    batch = synthetic.batch(step, captions=1 if stage == "distill" else 2)
    if stage == "distill":
      batch = types.DistillBatch(batch, synthetic.batch(100 + step))
    assert rows == (slice(0, 8),)
    yield batch
    step += 1


def named(tree):
  return dict(zip(trees.names(tree), jax.tree.leaves(tree), strict=True))


@functools.cache
def trained(stage, mesh, parts=1):
  """The state after three steps, and the lines it wrote."""
  cfg = cfg_of(stage, MESHES[mesh], parts)
  devices = jax.devices()[: 1 if mesh == "one" else 8]
  words = " ".join(map(str, range(synthetic.VOCABULARY - 4)))
  tokenizer = tokenizers.train([words], cfg.tokens)
  assert tokenizer.vocab_size == synthetic.VOCABULARY
  frozen = None
  if stage == "distill":
    shapes = jax.eval_shape(
      tasks.slow(cfg, synthetic.VOCABULARY).init, jax.random.key(0)
    )
    draw = np.random.default_rng(0)
    teacher = jax.tree.map(
      lambda x: draw.normal(0, 0.2, x.shape).astype(np.float32), shapes
    )
    frozen = teacher | {"gamma": np.float32(0.5), "tau": np.float32(0.7)}
  with (
    tempfile.TemporaryDirectory() as workdir,
    jax.default_matmul_precision("highest"),
  ):
    state = loop.fit(
      cfg,
      workdir,
      tokenizer,
      functools.partial(batches, stage),
      frozen=frozen,
      devices=devices,
    )
    lines = journal.read(f"{workdir}/{cfg.folder}")
    return state, [x for x in lines if x["split"] == "train"]


# Each is a minute of compiling: by default every stage and mesh come once.
EVERY = [(s, m) for s in ("fast", "slow", "distill") for m in list(MESHES)[1:]]
SOME = [
  ("fast", "data=8"),
  ("slow", "data=2 fsdp=2 model=2"),
  ("distill", "data=4 fsdp=2"),
]


@pytest.mark.parametrize(
  ("stage", "mesh"), EVERY if "EVERY_MESH" in os.environ else SOME
)
def test_eight_devices_lose_as_one_does(stage, mesh):
  _, want = trained(stage, "one")
  _, got = trained(stage, mesh)
  assert_same_lines(want, got)


def test_a_batch_in_parts_loses_as_one_that_is_whole():
  """Gradient caching, on all axes: each device takes half its rows twice."""
  _, want = trained("fast", "one")
  _, got = trained("fast", "data=2 fsdp=2 model=2", parts=2)
  assert_same_lines(want, got)


def assert_same_lines(want, got):
  keys = want[0].keys() - synthetic.CLOCKED - {"split"}
  assert {"loss", "grad_norm"} < keys
  assert len({line["loss"] for line in want}) == 3
  for a, b in zip(want, got, strict=True):
    for key in sorted(keys):
      np.testing.assert_allclose(b[key], a[key], rtol=1e-5, err_msg=key)


def test_parameters_lie_where_the_rules_say():
  state, _ = trained("slow", "data=2 fsdp=2 model=2")
  placed = named(state.params)
  split = {
    name: x for name, x in placed.items() if not x.sharding.is_fully_replicated
  }
  for end, axes in (
    ("/(query|key|value)/kernel", (None, "fsdp", "model", None)),
    ("/out/kernel", (None, "model", None, "fsdp")),
    ("/up/kernel", (None, "fsdp", "model")),
    ("/down/kernel", (None, "model", "fsdp")),
  ):
    ours = [
      name
      for name in placed
      if re.fullmatch(rf".*/(blocks|level\d)/.*{end}", name)
    ]
    assert len(ours) > 3
    for name in ours:
      x = split.pop(name)
      # Of the eight devices each holds a quarter; two hold the same.
      assert x.addressable_shards[0].data.size == x.size // 4
      assert x.sharding.spec == PartitionSpec(*axes)
  assert not split


@pytest.mark.parametrize("freeze", [(), (".*/vision/.*",)])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_lie_where_their_parameter_does(name, freeze):
  cfg = cfg_of("slow", MESHES["data=2 fsdp=2 model=2"])
  task = tasks.make(cfg, synthetic.VOCABULARY)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  chosen = dataclasses.replace(cfg.optim, name=name, freeze=freeze)
  state = jax.eval_shape(optim.optimizer(chosen, 9, shapes).init, shapes)
  on = sharding.mesh(cfg.mesh)
  where = sharding.of_params(cfg.mesh.rules, shapes, on)
  params, lie = named(shapes), named(where)
  got = named(sharding.of_state(state, shapes, where, on))
  followed = set()
  for leaf, x in named(state).items():
    for own in params:
      if leaf.endswith("/" + own):
        assert x.shape == params[own].shape
        assert got[leaf] == lie[own], leaf
        followed.add(own)
  frozen = {n for n in params if freeze and "/vision/" in n}
  assert followed == params.keys() - frozen
  counts = [leaf for leaf in got if leaf.endswith("count")]
  assert counts
  assert all(got[leaf].is_fully_replicated for leaf in counts)


def test_parameters_are_listed_with_their_places(tmp_path):
  on = sharding.mesh(MESHES["data=2 fsdp=2 model=2"])
  made = step.program(cfg_of("slow", config.Mesh(2, 2, 2)), 12, on)
  said = []
  stages.describe(epath.Path(tmp_path), made.state.params, said.append)
  rows = (tmp_path / layout.PARAMETERS).read_text().splitlines()
  (row,) = (r for r in rows if "/level0/" in r and "/up/kernel" in r)
  assert "(None, 'fsdp', 'model')" in row
  (row,) = (r for r in rows if "/level0/" in r and "/up/bias" in r)
  assert "fsdp" not in row
  count = sum(x.size for x in jax.tree.leaves(made.state.params))
  assert said[0].startswith(f"{count:,} parameters")


def test_a_trained_state_keeps_its_place():
  state, _ = trained("slow", "data=2 fsdp=2 model=2")
  params, moments = named(state.params), named(state.opt_state)
  for own, x in params.items():
    ours = [m for n, m in moments.items() if n.endswith("/" + own)]
    assert len(ours) == 2  # mean and square
    assert all(m.sharding == x.sharding for m in ours), own


def test_the_step_counts_on_every_device():
  state, _ = trained("fast", "data=8")
  assert int(state.step) == 3
  assert state.step.sharding.is_fully_replicated
  assert len(state.step.sharding.device_set) == 8


@pytest.mark.parametrize(
  ("sizes", "want"),
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((-1, 2, 2), (2, 2, 2)),
    ((2, -1, 1), (2, 4, 1)),
    ((4, 1, -1), (4, 1, 2)),
  ],
)
def test_one_axis_takes_what_is_left(sizes, want):
  on = sharding.mesh(config.Mesh(*sizes))
  assert tuple(on.shape[a] for a in sharding.AXES) == want
  assert on.devices.size == 8


@pytest.mark.parametrize(
  "sizes", [(3, 1, 1), (-1, 3, 1), (-1, 16, 1), (4, 4, 1)]
)
def test_sizes_that_are_not_the_devices_are_refused(sizes):
  with pytest.raises(ValueError, match="must be the 8 devices; got"):
    sharding.mesh(config.Mesh(*sizes))


def test_a_batch_that_does_not_split_is_refused():
  on = sharding.mesh(config.Mesh(2, 2, 2))
  sharding.check_batch(12, on)  # the model axis splits no batch
  with pytest.raises(ValueError) as error:
    sharding.check_batch(250, on)
  assert str(error.value) == (
    "train.batch_size: must be divisible by the 4 batch shards of mesh "
    "(data=2, fsdp=2); got 250. set it to a multiple of 4"
  )


TREE = {"a": {"kernel": np.zeros((4, 6))}, "b": np.zeros(3)}
REST = (".*", ())


@pytest.mark.parametrize(
  ("rules", "says"),
  [
    (((".*/kernel", ("fsdp",)),), "got none for 'b'"),
    (((".*/kernle", ()), REST), "got '.*/kernle'"),
    ((REST, (".*/kernel", ())), "got '.*/kernel'"),  # never the first
    (((".*/kernel", ("rows",)), REST), "'rows' for 'a/kernel'"),
    (((".*/kernel", ("fsdp", "fsdp")), REST), "one dimension only; got"),
    (((".*/kernel", (None, None, "fsdp")), REST), "'a/kernel' has 2 dim"),
    ((("b", ("fsdp",)), REST), "fsdp=2 must divide dimension 3 of 'b'"),
    (((".*/kernel", (None, "data")), REST), "data=4 must divide dimension 6"),
  ],
)
def test_rules_that_do_not_fit_are_refused(rules, says):
  on = sharding.mesh(config.Mesh(4, 2, 1))
  with pytest.raises(ValueError) as error:
    sharding.of_params(rules, TREE, on)
  assert str(error.value).startswith("mesh.rules: ")
  assert says in str(error.value)


def test_rules_that_fit_place():
  on = sharding.mesh(config.Mesh(4, 2, 1))
  got = sharding.of_params(((".*/kernel", ("data", "fsdp")), REST), TREE, on)
  assert got["a"]["kernel"].spec == PartitionSpec("data", "fsdp")
  assert got["b"].is_fully_replicated


def test_rows_are_put_where_the_batch_lies():
  on = sharding.mesh(config.Mesh(2, 2, 2))
  x = {"x": np.arange(8.0).reshape(8, 1)}
  put = sharding.put(x, sharding.batch(on))["x"]
  np.testing.assert_array_equal(put, x["x"])
  assert {s.data.shape for s in put.addressable_shards} == {(2, 1)}
  assert sharding.local_rows(8, on) == (slice(0, 8),)


def test_teacher_and_running_mean_lie_as_their_parameters_do():
  """What nobody trains takes as much memory as what somebody does."""
  made = step.program(
    lowered.step("distill"),
    synthetic.VOCABULARY,
    sharding.mesh(config.Mesh(4, 2)),
  )
  where = lambda tree: {
    name: x.sharding.spec for name, x in named(tree).items()
  }
  params = where(made.state.params)
  assert any("fsdp" in str(spec) for spec in params.values())
  assert where(made.state.ema) == params
  teacher = where(made.frozen)
  assert any("fsdp" in str(spec) for spec in teacher.values())


def test_a_step_gives_back_the_memory_of_the_state_before():
  cfg = lowered.step()
  made = step.program(cfg, synthetic.VOCABULARY, sharding.mesh(cfg.mesh))
  lower = made.step.lower(made.state, made.frozen, made.batch)
  (state, frozen, batch), _ = lower.args_info
  assert all(x.donated for x in jax.tree.leaves(state))
  assert not any(x.donated for x in jax.tree.leaves((frozen, batch)))


def test_slices_that_do_not_fit_are_refused():
  """data alone crosses slices, and a TPU says how many there are."""
  with pytest.raises(
    ValueError, match=r"divide the axis data.*got 2 for data=1"
  ):
    sharding.mesh(config.Mesh(1, 8, slices=2, topology="v5e:2x4"))
  two = [SimpleNamespace(platform="tpu", slice_index=i) for i in (0, 1)]
  with pytest.raises(ValueError, match="must be the 2 of the devices; got 1"):
    sharding._check_slices(1, 2, two)


def test_rules_come_from_the_config():
  rules = ((".*/embedding", ("fsdp",)), REST)
  cfg = synthetic.cfg(mesh=config.Mesh(4, 2, 1, rules=rules))
  task = tasks.make(cfg, synthetic.VOCABULARY)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  on = sharding.mesh(cfg.mesh)
  got = sharding.of_params(cfg.mesh.rules, shapes, on)
  table = got["fast"]["text_tower"]["tokens"]["embedding"]
  assert table.spec == PartitionSpec("fsdp")
