"""Value and gradient of a task on a batch, at once or in parts.

A batch in parts is larger than memory. Its gradient is still that of the whole
batch: first every part's rows, then the loss of all rows and its gradient by
them, then every part's gradient through its own rows (gradient caching: Gao et
al., 2021, for contrastive losses). A loss linear in its rows, a sum over words
with one divisor, has that gradient beforehand and needs no first pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fs_jax import types


def value_and_grad(
  task: types.Task, parts: int = 1
) -> Callable[..., tuple[tuple[types.Array, types.Metrics], types.Params]]:
  """gradient(trained, frozen, batch, key) -> ((loss, metrics), gradient).

  Args:
    task: the objective.
    parts: that a batch is split into; row r is in part r % parts, so that
      every device splits the rows it has.
  """
  if parts == 1:
    return _whole(task)
  return _cached(task, parts)


def _whole(task: types.Task) -> Callable[..., Any]:
  def gradient(trained, frozen, batch, key):
    def total(params):
      rows = task.encode(params, frozen, batch, key)
      return task.loss(params, rows, batch)

    return jax.value_and_grad(total, has_aux=True)(trained)

  return gradient


def _cached(task: types.Task, parts: int) -> Callable[..., Any]:
  def gradient(trained, frozen, batch, key):
    of_batch, of_rows = task.split_limits(batch)
    each = split(batch, of_batch, parts), jax.random.split(key, parts)

    def rows_of(params, part):
      return task.encode(params, frozen, *part)

    whole_loss = jax.value_and_grad(task.loss, argnums=(0, 1), has_aux=True)
    if task.loss_is_linear:
      shapes = jax.eval_shape(
        lambda: jax.vmap(rows_of, (None, 0))(trained, each)
      )
      rows = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    else:
      rows = jax.lax.map(lambda part: rows_of(trained, part), each)
    rows = join(rows, of_rows)
    found, (direct, pull) = whole_loss(trained, rows, batch)

    def add(total, part_pull):
      part, pull = part_pull
      rows, back = jax.vjp(lambda params: rows_of(params, part), trained)
      total = jax.tree.map(jnp.add, total, back(pull)[0])
      return total, rows if task.loss_is_linear else None

    pulls = split(pull, of_rows, parts)
    grads, rows = jax.lax.scan(add, direct, (each, pulls))
    if task.loss_is_linear:
      found = task.loss(trained, join(rows, of_rows), batch)
    return found, grads

  return gradient


def split(tree: Any, groups: Any, parts: int) -> Any:
  """[n, ...] -> [parts, n / parts, ...]; group g goes to part g % parts.

  Args:
    tree: of arrays.
    groups: a prefix of `tree`: rows of an array that stay together are
      n / groups.
    parts: must divide each number of groups.
  """

  def one(x: types.Array, count: int) -> types.Array:
    x = x.reshape(count // parts, parts, x.shape[0] // count, *x.shape[1:])
    return x.swapaxes(0, 1).reshape(parts, -1, *x.shape[3:])

  return _with_groups(one, groups, tree)


def join(tree: Any, groups: Any) -> Any:
  """What `split` took apart, as it was: [parts, n / parts, ...] -> [n, ...]."""

  def one(x: types.Array, count: int) -> types.Array:
    parts, rows = x.shape[:2]
    each = count // parts
    x = x.reshape(parts, each, rows // each, *x.shape[2:])
    return x.swapaxes(0, 1).reshape(parts * rows, *x.shape[3:])

  return _with_groups(one, groups, tree)


def _with_groups(one: Callable[..., Any], groups: Any, tree: Any) -> Any:
  return jax.tree.map(
    lambda count, below: jax.tree.map(lambda x: one(x, count), below),
    groups,
    tree,
  )
