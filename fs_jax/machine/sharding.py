"""Meshes and shardings: a regex table outside the models places parameters.

The train step is `jax.jit` (once `pjit`) with the shardings made here; the
compiler places the collectives.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from fs_jax import config, trees

Tree = Any  # arrays, or their shapes
Shardings = Any  # a tree of NamedSharding
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

AXES = ("data", "fsdp", "model")
BATCH = PartitionSpec(config.ROWS)  # for the leading axis of a Batch's arrays


def mesh(cfg: config.Mesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Arranges devices in a grid of axes data x fsdp x model.

  On TPUs neighbours along an axis are neighbours in the network. Slices, which
  a slower network joins, are laid out along `data` only.

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


def _grid(
  sizes: list[int], slices: int, devices: Sequence[jax.Device]
) -> np.ndarray:
  if devices[0].platform != "tpu":  # no other platform tells what is near
    return np.array(devices).reshape(sizes)
  if slices == 1:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  inside = [sizes[0] // slices, *sizes[1:]]
  return mesh_utils.create_hybrid_device_mesh(
    inside, [slices, 1, 1], devices, allow_split_physical_axes=True
  )


def _check_slices(
  slices: int, data: int, devices: Sequence[jax.Device]
) -> None:
  if data % slices:
    raise ValueError(
      "mesh.slices: must divide the axis data, which alone crosses slices; "
      f"got {slices} for data={data}. set mesh.data to a multiple of {slices}, "
      f"such as {-(-data // slices) * slices}"
    )
  indices = {getattr(d, "slice_index", 0) for d in devices}
  if devices[0].platform == "tpu" and len(indices) != slices:
    raise ValueError(
      f"mesh.slices: must be the {len(indices)} of the devices; got {slices}. "
      f"set it to {len(indices)}"
    )


def check_batch(
  batch_size: int, mesh: Mesh, field: str = "train.batch_size", parts: int = 1
) -> None:
  """Refuses a batch, any part of which the mesh cannot split evenly."""
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  if batch_size % (shards * parts):
    in_parts = f" times {parts} parts (train.accumulate)" if parts > 1 else ""
    raise ValueError(
      f"{field}: must be divisible by the {shards} batch shards of mesh (data="
      f"{mesh.shape['data']}, fsdp={mesh.shape['fsdp']}){in_parts}; got "
      f"{batch_size}. set it to a multiple of {shards * parts}"
    )


def with_mesh(
  mesh: Mesh, fn: Callable[Arguments, Result]
) -> Callable[Arguments, Result]:
  """Wraps `fn` so that models see the mesh while it is traced.

  `layers.by_rows` reads it. The mesh is abstract: there may be no devices, only
  a description of them.
  """

  @functools.wraps(fn)
  def traced(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return fn(*args, **kwargs)

  return traced


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, BATCH)


def of_params(rules: config.Rules, tree: Tree, mesh: Mesh) -> Shardings:
  """Shardings for a tree of parameters, or of their shapes.

  Raises:
    ValueError: a rule that is never used, a path without a rule, an axis that
      the mesh lacks or a rule uses twice, a dimension that its axis does not
      divide.
  """
  trees.check_rules(rules, trees.names(tree), what="mesh.rules")
  return trees.map_named(
    lambda name, x: _place(rules, name, x.shape, mesh), tree
  )


def of_frozen(rules: config.Rules, tree: Tree, mesh: Mesh) -> Shardings:
  """Shardings for parameters that are not trained, and for scalars among them.

  As they may be a part of a model only, a rule may go unused.
  """
  return trees.map_named(
    lambda name, x: (
      _place(rules, name, x.shape, mesh) if x.shape else replicated(mesh)
    ),
    tree,
  )


def of_state(
  state: Tree, shapes: Tree, params: Shardings, mesh: Mesh
) -> Shardings:
  """Shardings for a train state: moments are sharded as their parameter is.

  A leaf whose path ends in a parameter's path and that has its shape takes its
  sharding; anything else is replicated.

  Args:
    state: the state's shapes.
    shapes: the parameters' shapes.
    params: the parameters' shardings.
    mesh: the mesh.
  """
  leaves = jax.tree.leaves(shapes), jax.tree.leaves(params)
  known = {
    name: (leaf.shape, sharding)
    for name, leaf, sharding in zip(trees.names(shapes), *leaves, strict=True)
  }

  def find(name: str, leaf: Any) -> NamedSharding:
    parts = name.split("/")
    for start in range(len(parts)):
      shape, sharding = known.get("/".join(parts[start:]), (None, None))
      if shape == leaf.shape:
        return sharding
    return replicated(mesh)

  return trees.map_named(find, state)


def put(tree: Tree, sharding: NamedSharding) -> Tree:
  """Makes global arrays of the rows that each process produced."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), tree
  )


def spread(value: ArrayLike, sharding: NamedSharding) -> jax.Array:
  """Shards a value that every process holds; each keeps its own part."""
  whole = np.asarray(value)
  return jax.make_array_from_callback(whole.shape, sharding, lambda i: whole[i])


def place(tree: Tree, like: Tree) -> Tree:
  """Spreads a tree; the leaves of `like` have the shardings."""
  return jax.tree.map(lambda x, to: spread(x, to.sharding), tree, like)


def local_rows(batch_size: int, mesh: Mesh) -> tuple[slice, ...]:
  """Spans of rows of the global batch that this process must produce, in order.

  They are the rows of its own devices, so that no row is moved afterwards.
  """
  indices = batch(mesh).addressable_devices_indices_map((batch_size,))
  own = {
    index[0].indices(batch_size)[:2] for index in indices.values() if index
  }
  spans: list[slice] = []
  for start, stop in sorted(own):
    if spans and spans[-1].stop == start:
      spans[-1] = slice(spans[-1].start, stop)
    else:
      spans.append(slice(start, stop))
  return tuple(spans)


def _place(
  rules: config.Rules, name: str, shape: tuple[int, ...], mesh: Mesh
) -> NamedSharding:
  axes = trees.first_match(rules, name, what="mesh.rules")
  used = [a for a in axes if a is not None]
  for axis in used:
    if axis not in AXES:
      raise ValueError(
        f"mesh.rules: axes are {', '.join(AXES)}; got {axis!r} for {name!r}. "
        "use one of them, or None"
      )
  if len(set(used)) < len(used):
    raise ValueError(
      f"mesh.rules: an axis splits one dimension only; got {axes} for "
      f"{name!r}. replace the second with None"
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
        f"dimension {size} of {name!r} {tuple(shape)}. set mesh.{along} to a "
        f"divisor of {size}, or the rule's {along!r} to None"
      )
  return NamedSharding(mesh, PartitionSpec(*axes))
