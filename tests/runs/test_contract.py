"""Like parts agree, or the error says what differs and what to do."""

import ast
import dataclasses
import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fs_jax import config, configdict, sizes
from fs_jax.machine import provenance
from fs_jax.runs import contract, stages

PARAMS = {
  "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
  "b": np.zeros((), np.float32),
}


@pytest.fixture
def cfg():
  fast = config.Fast(sizes.VISION["tiny"], sizes.TEXT["tiny"], embed=8)
  slow = config.Slow(sizes.VISION["tiny"], sizes.DECODER["tiny"], d_mem=16)
  return config.Config("slow", fast, slow)


def test_digest_is_of_content_not_of_placement():
  digest = contract.digest(PARAMS)
  assert digest == contract.digest(jax.tree.map(jnp.asarray, PARAMS))
  assert digest == contract.digest(dict(reversed(PARAMS.items())))
  mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  spread = PARAMS | {"a": jax.device_put(PARAMS["a"], rows)}
  assert digest == contract.digest(spread)
  fortran = {"kernel": np.asfortranarray(PARAMS["a"]["kernel"])}
  assert digest == contract.digest(PARAMS | {"a": fortran})


@pytest.mark.parametrize(
  "a",
  [
    {"kernel": np.arange(1, 7, dtype=np.float32).reshape(2, 3)},
    {"kernel": np.arange(6, dtype=np.float32).reshape(3, 2)},
    {"kernel": np.arange(6, dtype=np.int32).reshape(2, 3)},
    {"kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)},
    {"other": np.arange(6, dtype=np.float32).reshape(2, 3)},
  ],
)
def test_digest_sees_values_shapes_types_and_names(a):
  assert contract.digest(PARAMS) != contract.digest(PARAMS | {"a": a})


def test_parts_are_flat_and_survive_json(cfg):
  fast = contract.fast(cfg, "hash", PARAMS)
  slow = contract.slow(cfg, "hash", PARAMS)
  for part in (fast, slow, contract.items(["x"])):
    assert all(isinstance(v, (str, int, float, bool)) for v in part.values())
    assert json.loads(json.dumps(part)) == part
  assert fast["embed"] == 8
  assert fast["resize_method"] == "bicubic, antialiased"
  assert fast["mean"] == "0.5 0.5 0.5"
  assert (slow["levels"], slow["d_mem"]) == (1, 16)
  assert slow["precision"] == "float32"
  with pytest.raises(ValueError, match=r"config\.slow"):
    bare = dataclasses.replace(cfg, stage="fast", slow=None)
    contract.slow(bare, "hash", PARAMS)


def test_check_names_field_values_and_mend(cfg):
  ours = contract.fast(cfg, "hash", PARAMS)
  names = {"ours_name": "run r", "theirs_name": "index i", "mend": "do this"}
  provenance.check("fast", ours, dict(ours), **names)
  data = dataclasses.replace(cfg.data, image_size=32)
  other = {"a": PARAMS["a"]}
  theirs = contract.fast(dataclasses.replace(cfg, data=data), "hash", other)
  says = (
    r"fast\.image_size: run r and index i must agree; got 64 \(run r\) and 32 "
    r"\(index i\)\. do this"
  )
  with pytest.raises(ValueError, match=says):
    provenance.check("fast", ours, theirs, **names)
  with pytest.raises(ValueError, match=r"fast\.new: .*None .* and 1 "):
    provenance.check("fast", ours, ours | {"new": 1}, **names)


def test_check_all_needs_the_part():
  names = {"ours_name": "run", "theirs_name": "index", "mend": "do this"}
  theirs = {"fast": {"x": 1}, "items": {"count": 2}}
  provenance.check_all(None, theirs, **names)
  provenance.check_all({"fast": {"x": 1}}, theirs, **names)
  with pytest.raises(ValueError, match=r"slow: index must have .*fast, items"):
    provenance.check_all({"slow": {"x": 1}}, theirs, **names)
  with pytest.raises(ValueError, match=r"fast\.x"):
    provenance.check_all({"fast": {"x": 2}}, theirs, **names)


def test_items_are_ordered():
  part = contract.items(["a", "b"])
  assert part["count"] == 2
  assert part == contract.items(("a", "b"))
  assert part != contract.items(["b", "a"])
  assert part != contract.items(["ab", ""])


def test_a_recipe_has_every_field_that_decides_a_result(cfg):
  fields = contract.recipe(cfg)
  assert json.loads(json.dumps(fields)) == fields
  assert all(not isinstance(v, (list, dict)) for v in fields.values())
  left_out = set(configdict.flatten(cfg)) - set(fields)
  assert left_out == {
    name
    for name in configdict.flatten(cfg)
    if name in contract.UNCOMPARED or name.startswith(("mesh.", "weights."))
  }
  assert {"seed", "distill.alpha", "data.mean", "compute"} <= set(fields)
  other = dataclasses.replace(cfg, mesh=config.Mesh(data=4), name="x")
  assert contract.recipe(other) == fields


def test_what_may_change_while_a_run_goes_on_is_in_no_contract(cfg):
  """Or a gallery would be refused for how often its model was saved."""
  free = {x for x in configdict.flatten(cfg) if x.startswith(stages.FREE)}
  # Which step later programs read is part of what they read.
  assert free - {"train.keep_best"} <= set(configdict.flatten(cfg)) - set(
    contract.recipe(cfg)
  )


def test_a_difference_names_its_field_on_either_side():
  a = {"fast": {"x": 1, "y": "a" * 64}, "items": {"count": 2}}
  assert provenance.difference(a, json.loads(json.dumps(a))) is None
  assert provenance.difference(a, a | {"fast": {"x": 2, "y": "a" * 64}}) == (
    "fast.x: 1 and 2"
  )
  assert (
    provenance.difference(a, {"fast": a["fast"]}) == "items.count: 2 and None"
  )
  assert (
    provenance.difference({"fast": a["fast"]}, a) == "items.count: None and 2"
  )


def test_a_flag_is_what_a_shell_and_the_config_take(cfg):
  for field in ("data.mean", "data.image_size", "data.resize", "slow.widths"):
    (word,) = shlex.split(contract.flag(field, contract.recipe(cfg)[field]))
    name, _, text = word.removeprefix("--config.").partition("=")
    assert name == field
    want = configdict.flatten(cfg)[field]
    assert (text if isinstance(want, str) else ast.literal_eval(text)) == want
