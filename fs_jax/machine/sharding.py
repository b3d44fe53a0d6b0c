"""Mesh and placement: a regex table outside the models says what lies where.

What used to be `pjit` is `jax.jit` with shardings: the train step is jitted
with the shardings made here, and the compiler places the collectives.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fs_jax import config, trees

AXES = ("data", "fsdp", "model")
BATCH = PartitionSpec(config.ROWS)  # leading axis of everything in a Batch


def mesh(cfg: config.Mesh, devices: list | None = None) -> Mesh:
  """Devices as a grid of axes data x fsdp x model.

  On a TPU neighbours of an axis are neighbours in the network, and slices,
  which a slower one joins, lie side by side along `data` alone.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or the
      slices are not those of the devices.
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
  _check_slices(cfg.slices, sizes[0], devices)
  axis_types = (jax.sharding.AxisType.Auto,) * len(AXES)
  return Mesh(_grid(sizes, cfg.slices, devices), AXES, axis_types=axis_types)


def _grid(sizes: list[int], slices: int, devices: list) -> np.ndarray:
  if devices[0].platform != "tpu":  # no other says who is near whom
    return np.array(devices).reshape(sizes)
  if slices == 1:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  inside = [sizes[0] // slices, *sizes[1:]]
  return mesh_utils.create_hybrid_device_mesh(
    inside, [slices, 1, 1], devices, allow_split_physical_axes=True
  )


def _check_slices(slices: int, data: int, devices: list) -> None:
  if data % slices:
    raise ValueError(
      "mesh.slices: must divide the axis data, which alone crosses slices; "
      f"got {slices} for data={data}. change either"
    )
  found = {getattr(d, "slice_index", 0) for d in devices}
  if devices[0].platform == "tpu" and len(found) != slices:
    raise ValueError(
      f"mesh.slices: must be the {len(found)} of the devices; got {slices}. "
      "set it to that number"
    )


def check_batch(
  batch_size: int, mesh: Mesh, field: str = "train.batch_size", parts: int = 1
) -> None:
  """Refuses a batch that the mesh cannot split evenly, each part of it."""
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  if batch_size % (shards * parts):
    in_parts = f" times {parts} parts (train.accumulate)" if parts > 1 else ""
    raise ValueError(
      f"{field}: must be divisible by the {shards} batch shards of mesh (data="
      f"{mesh.shape['data']}, fsdp={mesh.shape['fsdp']}){in_parts}; got "
      f"{batch_size}. set it to a multiple of {shards * parts}"
    )


def with_mesh(mesh: Mesh, fn: Callable[..., Any]) -> Callable[..., Any]:
  """`fn`, which is traced where models see the mesh (`layers.by_rows`).

  The mesh without its devices: they may be described only.
  """

  @functools.wraps(fn)
  def traced(*args: Any) -> Any:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return fn(*args)

  return traced


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, BATCH)


def of_params(rules: config.Rules, tree: Any, mesh: Mesh) -> Any:
  """Sharding of every parameter; `tree` may hold shapes only.

  Raises:
    ValueError: a dead rule, an unmatched path, an axis that the mesh lacks or
      a rule uses twice, a dimension that its axis does not divide.
  """
  trees.check_rules(rules, trees.names(tree), what="mesh.rules")
  return trees.map_named(
    lambda name, x: _place(rules, name, x.shape, mesh), tree
  )


def of_frozen(rules: config.Rules, tree: Any, mesh: Mesh) -> Any:
  """As `of_params`, for parameters that nobody trains, and numbers with them.

  They may be of a part of a model, so a rule may have nothing to say.
  """
  return trees.map_named(
    lambda name, x: (
      _place(rules, name, x.shape, mesh) if x.shape else replicated(mesh)
    ),
    tree,
  )


def of_state(state: Any, shapes: Any, params: Any, mesh: Mesh) -> Any:
  """Shardings for a whole train state: moments lie where their parameter does.

  A leaf of the state whose path ends in a parameter's path, and which has its
  shape, follows it; anything else is replicated.

  Args:
    state: shapes of the state.
    shapes: of the parameters.
    params: the parameters' shardings.
    mesh: the mesh.
  """
  leaves = jax.tree.leaves(shapes), jax.tree.leaves(params)
  known = {
    name: (leaf.shape, where)
    for name, leaf, where in zip(trees.names(shapes), *leaves, strict=True)
  }

  def find(name: str, leaf: Any) -> NamedSharding:
    parts = name.split("/")
    for start in range(len(parts)):
      shape, where = known.get("/".join(parts[start:]), (None, None))
      if shape == leaf.shape:
        return where
    return replicated(mesh)

  return trees.map_named(find, state)


def put(tree: Any, where: NamedSharding) -> Any:
  """Rows this process produced -> one global array over all processes."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(where, x), tree
  )


def spread(value: Any, where: NamedSharding) -> jax.Array:
  """A value that every process holds, laid out; each keeps its own part."""
  held = np.asarray(value)
  return jax.make_array_from_callback(held.shape, where, lambda i: held[i])


def place(tree: Any, like: Any) -> Any:
  """`spread` of a tree; `like` holds where each leaf goes."""
  return jax.tree.map(lambda x, to: spread(x, to.sharding), tree, like)


def local_rows(batch_size: int, mesh: Mesh) -> tuple[slice, ...]:
  """Rows of the global batch that this process must produce: runs, in order.

  They are those that its devices hold, so that no row is moved afterwards.
  """
  where = batch(mesh).addressable_devices_indices_map((batch_size,))
  held = {index[0].indices(batch_size)[:2] for index in where.values() if index}
  runs: list[slice] = []
  for start, stop in sorted(held):
    if runs and runs[-1].stop == start:
      runs[-1] = slice(runs[-1].start, stop)
    else:
      runs.append(slice(start, stop))
  return tuple(runs)


def _place(rules: config.Rules, name: str, shape: tuple, mesh: Mesh):
  axes = trees.first_match(rules, name, what="mesh.rules")
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
    if along is not None and size % mesh.shape[along]:
      raise ValueError(
        f"mesh.rules: mesh axis {along}={mesh.shape[along]} must divide "
        f"dimension {size} of {name!r} {tuple(shape)}. change the mesh or the "
        "rule"
      )
  return NamedSharding(mesh, PartitionSpec(*axes))
