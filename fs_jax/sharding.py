"""Mesh and placement: a regex table outside the models says what lies where.

What used to be `pjit` is `jax.jit` with shardings: the train step is jitted
with the shardings made here, and the compiler places the collectives.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fs_jax import config, paths

AXES = ("data", "fsdp", "model")
BATCH = PartitionSpec(("data", "fsdp"))  # leading axis of everything in a Batch


def mesh(cfg: config.Mesh, devices: list | None = None) -> Mesh:
  """Devices as a grid of axes data x fsdp x model.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [cfg.data, cfg.fsdp, cfg.model]
  if -1 in sizes:
    known = -math.prod(sizes)
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f"mesh: data * fsdp * model must be the {len(devices)} devices; got "
      f"{cfg.data} * {cfg.fsdp} * {cfg.model}. set one to -1 for what is left"
    )
  grid = np.array(devices).reshape(sizes)
  axis_types = (jax.sharding.AxisType.Auto,) * len(AXES)
  return Mesh(grid, AXES, axis_types=axis_types)


def check_batch(
  batch_size: int, on: Mesh, field: str = "train.batch_size"
) -> None:
  """Refuses a batch that the mesh cannot split evenly."""
  ways = on.shape["data"] * on.shape["fsdp"]
  if batch_size % ways:
    raise ValueError(
      f"{field}: must be divisible by the {ways} batch shards of mesh (data="
      f"{on.shape['data']}, fsdp={on.shape['fsdp']}); got {batch_size}. set it "
      f"to a multiple of {ways}"
    )


def replicated(on: Mesh) -> NamedSharding:
  return NamedSharding(on, PartitionSpec())


def batch(on: Mesh) -> NamedSharding:
  return NamedSharding(on, BATCH)


def of_params(rules: config.Rules, tree: Any, on: Mesh) -> Any:
  """Sharding of every parameter; `tree` may hold shapes only.

  Raises:
    ValueError: a dead rule, an unmatched path, an axis that the mesh lacks or
      a rule uses twice, a dimension that its axis does not divide.
  """
  paths.check_rules(rules, paths.names(tree), what="mesh.rules")
  return paths.map_named(lambda name, x: _place(rules, name, x.shape, on), tree)


def of_state(state: Any, params: Any, on: Mesh) -> Any:
  """Shardings for a whole train state: moments lie where their parameter does.

  `params` holds the parameters' shardings; a leaf of the state whose path ends
  in a parameter's path follows it, anything else is replicated.
  """
  by_name = dict(zip(paths.names(params), jax.tree.leaves(params), strict=True))

  def find(name: str, leaf: Any) -> NamedSharding:
    parts = name.split("/")
    for start in range(len(parts)):
      found = by_name.get("/".join(parts[start:]))
      if found is not None and len(found.spec) <= len(leaf.shape):
        return found
    return replicated(on)

  return paths.map_named(find, state)


def put(tree: Any, where: NamedSharding) -> Any:
  """Rows this process produced -> one global array over all processes."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(where, x), tree
  )


def local_rows(batch_size: int) -> slice:
  """Rows of the global batch that this process must produce."""
  each = batch_size // jax.process_count()
  start = each * jax.process_index()
  return slice(start, start + each)


def _place(rules: config.Rules, name: str, shape: tuple, on: Mesh):
  axes = paths.first_match(rules, name, what="mesh.rules")
  used = [a for a in axes if a is not None]
  for axis in used:
    if axis not in AXES:
      raise ValueError(
        f"mesh.rules: axes are {', '.join(AXES)}; got {axis!r} for {name!r}"
      )
  if len(set(used)) < len(used):
    raise ValueError(
      f"mesh.rules: an axis splits one dimension only; got {axes} for {name!r}"
    )
  if len(axes) > len(shape):
    raise ValueError(
      f"mesh.rules: {name!r} has {len(shape)} dimensions; got {axes}. give at "
      "most one axis a dimension"
    )
  for size, along in zip(shape, axes, strict=False):
    if along is not None and size % on.shape[along]:
      raise ValueError(
        f"mesh.rules: mesh axis {along}={on.shape[along]} must divide "
        f"dimension {size} of {name!r} {tuple(shape)}. change the mesh or the "
        "rule"
      )
  return NamedSharding(on, PartitionSpec(*axes))
