"""Every row with every column of a batch on a mesh, tile by tile.

Rows stay on their device; columns, with their sums so far, travel around the
ring of devices. Within a device, tiles of a few rows and columns meet one after
the other. On one device only tiles are left.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fs_jax import types
from fs_jax.machine import sharding

# Pytrees of arrays whose first axis is rows: one side, and its running values.
Side = tuple[Any, ...]
Sums = tuple[Any, ...]
Tile = Callable[[Side, Side, Sums, Sums], tuple[Sums, Sums]]


def go_around(
  mesh: Mesh,
  chunk: int,
  tile: Tile,
  *,
  rows: Side,
  columns: Side,
  row_sums: Sums,
  column_sums: Sums,
) -> tuple[Side, Sums, Sums]:
  """Columns, and both sides' sums, after every row has met every column.

  Args:
    mesh: the mesh; arrays lie on it as `sharding.BATCH` says.
    chunk: rows and columns of a tile, at most.
    tile: (rows, columns, their sums) of a tile -> their new sums.
    rows: pytrees of arrays with R first; they stay on their device.
    columns: the same; they travel around the ring of devices.
    row_sums, column_sums: the same; the first values.

  Columns come home unchanged. Sums over devices of what they hold should be
  taken of these: of those that were given, they might be taken while the ring
  turns, and the CPU backend, short of threads, waits forever in two
  collectives at once.
  """
  axes = sharding.BATCH[0]
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  ring = [(i, (i + 1) % ways) for i in range(ways)]
  shift = functools.partial(jax.lax.ppermute, axis_name=axes, perm=ring)

  def local(*sides: Side) -> tuple[Side, Sums, Sums]:
    size = sides[1][0].shape[0]
    rows, columns, *sums = _split(sides, chunk)

    def step(state: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
      columns, row_sums, column_sums = state
      # Not after the tiles: these travel while the tiles are computed.
      coming = jax.tree.map(shift, columns)
      row_sums, column_sums = _meet(tile, rows, columns, row_sums, column_sums)
      return (coming, row_sums, jax.tree.map(shift, column_sums)), None

    if ways == 1:
      end = columns, *_meet(tile, rows, columns, *sums)
    else:
      end, _ = jax.lax.scan(step, (columns, *sums), length=ways)
    return _join(end, size)

  spread = jax.shard_map(
    local, mesh=mesh, in_specs=sharding.BATCH, out_specs=sharding.BATCH
  )
  return spread(rows, columns, row_sums, column_sums)


def _meet(
  tile: Tile, rows: Side, columns: Side, row_sums: Sums, column_sums: Sums
) -> tuple[Sums, Sums]:
  """Every chunk of rows with every chunk of columns; sums are chunked too."""

  def column(row_sums: Sums, block: tuple[Side, Sums]) -> tuple[Sums, Sums]:
    columns, column_sums = block

    def row(column_sums: Sums, block: tuple[Side, Sums]) -> tuple[Sums, Sums]:
      row_sums, column_sums = tile(block[0], columns, block[1], column_sums)
      return column_sums, row_sums

    return jax.lax.scan(row, column_sums, (rows, row_sums))[::-1]

  return jax.lax.scan(column, row_sums, (columns, column_sums))


def _split(tree: types.Tree, chunk: int) -> types.Tree:
  """Arrays [R, ...] -> [chunks, R / chunks, ...], padded with zeros.

  Chunks as equal as can be; what is padded is masked, as false is zero.
  """

  def split(x: jax.Array) -> jax.Array:
    count = -(-x.shape[0] // chunk)
    size = -(-x.shape[0] // count)
    pad = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad).reshape(count, size, *x.shape[1:])

  return jax.tree.map(split, tree)


def _join(tree: types.Tree, size: int) -> types.Tree:
  """Undoes `_split` of arrays with that many rows."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], tree)
