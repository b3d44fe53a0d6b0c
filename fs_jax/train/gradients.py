"""Value and gradient of a task on a batch, at once or in parts.

A batch in parts is larger than memory. Its gradient is still that of the whole
batch: first every part's rows, then the loss of all rows and its gradient by
them, then every part's gradient through its own rows (gradient caching: Gao et
al., 2021, for contrastive losses). A loss linear in its rows, a sum over words
with one divisor, has that gradient beforehand and needs no first pass.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from fs_jax import types


class Gradient(Protocol):
  """Loss, metrics and gradient by `trained` of a batch."""

  def __call__(
    self,
    trained: types.Params,
    frozen: types.Params,
    batch: types.AnyBatch,
    key: jax.Array,
  ) -> tuple[tuple[types.Array, types.Metrics], types.Params]: ...


def value_and_grad(task: types.Task, parts: int = 1) -> Gradient:
  """gradient(trained, frozen, batch, key) -> ((loss, metrics), gradient).

  Args:
    task: the objective.
    parts: that a batch is split into; row r is in part r % parts, so that
      every device splits the rows it has.
  """
  return _whole(task) if parts == 1 else _cached(task, parts)


def _whole(task: types.Task) -> Gradient:
  """The gradient of a batch that is on the devices at once."""

  def gradient(
    trained: types.Params,
    frozen: types.Params,
    batch: types.AnyBatch,
    key: jax.Array,
  ) -> tuple[tuple[types.Array, types.Metrics], types.Params]:
    def total(params: types.Params) -> tuple[types.Array, types.Metrics]:
      rows = task.encode(params, frozen, batch, key)
      return task.loss(params, rows, batch)

    return jax.value_and_grad(total, has_aux=True)(trained)

  return gradient


def _cached(task: types.Task, parts: int) -> Gradient:
  """The gradient of a batch in parts, by the cached gradient of its rows."""

  def gradient(
    trained: types.Params,
    frozen: types.Params,
    batch: types.AnyBatch,
    key: jax.Array,
  ) -> tuple[tuple[types.Array, types.Metrics], types.Params]:
    batch_limits, row_limits = task.split_limits(batch)
    each = split(batch, batch_limits, parts), jax.random.split(key, parts)

    def encode(
      params: types.Params, part: tuple[types.AnyBatch, jax.Array]
    ) -> types.Tree:
      return task.encode(params, frozen, *part)

    whole_loss = jax.value_and_grad(task.loss, argnums=(0, 1), has_aux=True)
    if task.loss_is_linear:
      shapes = jax.eval_shape(
        lambda: jax.vmap(encode, (None, 0))(trained, each)
      )
      rows = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    else:
      rows = jax.lax.map(lambda part: encode(trained, part), each)
    rows = join(rows, row_limits)
    value, (direct, pull) = whole_loss(trained, rows, batch)

    def add(
      total: types.Params, part_pull: tuple[types.Tree, types.Tree]
    ) -> tuple[types.Params, types.Tree]:
      part, pull = part_pull
      rows, back = jax.vjp(lambda params: encode(params, part), trained)
      total = jax.tree.map(jnp.add, total, back(pull)[0])
      return total, rows if task.loss_is_linear else None

    pulls = split(pull, row_limits, parts)
    grads, rows = jax.lax.scan(add, direct, (each, pulls))
    if task.loss_is_linear:
      value = task.loss(trained, join(rows, row_limits), batch)
    return value, grads

  return gradient


def split(tree: types.Tree, groups: types.Tree, parts: int) -> types.Tree:
  """[n, ...] -> [parts, n / parts, ...]; group g goes to part g % parts.

  Args:
    tree: arrays.
    groups: a prefix of `tree`: the number of groups of each array; the
      n / groups rows of a group stay together.
    parts: must divide each number of groups.
  """

  def split_array(x: jax.Array, count: int) -> jax.Array:
    x = x.reshape(count // parts, parts, x.shape[0] // count, *x.shape[1:])
    return x.swapaxes(0, 1).reshape(parts, -1, *x.shape[3:])

  return _map_groups(split_array, groups, tree)


def join(tree: types.Tree, groups: types.Tree) -> types.Tree:
  """Undoes `split`: [parts, n / parts, ...] -> [n, ...]."""

  def join_array(x: jax.Array, count: int) -> jax.Array:
    parts, rows = x.shape[:2]
    each = count // parts
    x = x.reshape(parts, each, rows // each, *x.shape[2:])
    return x.swapaxes(0, 1).reshape(parts * rows, *x.shape[3:])

  return _map_groups(join_array, groups, tree)


def _map_groups(
  fn: Callable[[jax.Array, int], jax.Array],
  groups: types.Tree,
  tree: types.Tree,
) -> types.Tree:
  return jax.tree.map(
    lambda count, below: jax.tree.map(lambda x: fn(x, count), below),
    groups,
    tree,
  )
