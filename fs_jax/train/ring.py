"""Contrastive losses of a batch whose pairs fit no memory.

The values, gradients and metrics of `losses.info_nce` and `losses.sigmoid`,
where all pairs of a batch are never held at once. Visuals stay on their
device; blocks of texts, with their ids, mask and sums so far, travel around
the ring of devices, and meet every visual. Within a device the meeting goes
tile by tile, `chunk` visuals by `chunk` texts, so that memory grows with the
rows of a device and not with their square. On one device only tiles are left.

Gradients are written out (`jax.custom_vjp`) rather than left to
`jax.checkpoint`, which keeps the text block and all sums of each step, on
every device as many rows as the whole batch has. Written out, InfoNCE goes
around a second time with nothing kept but the log-sum-exps; and the sigmoid
loss, whose pairs know their gradient from their own logit, needs no second
round at all.

Rows here are pairs, R of them: a visual is repeated for each of its captions.
To a text of another visual InfoNCE shows the first of these rows only: there a
visual is one negative, however many captions it has.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from fs_jax.machine import sharding
from fs_jax.train import losses

Sums = tuple[Any, ...]  # running values of rows: pytrees with R first
Tile = Callable[[Any, Any, Sums, Sums], tuple[Sums, Sums]]


class Pair(NamedTuple):
  """Who a row is: it decides which other rows are its negatives."""

  place: Int[Array, "R"]  # in the global batch
  visual_id: Int[Array, "R"]
  text_id: Int[Array, "R"]
  captions: Int[Array, "R M"]  # text ids of all captions of the row's visual
  mask: Bool[Array, "R"]


def info_nce(
  visual: Float[Array, "B E"],
  text: Float[Array, "R E"],
  scale: Float[Array, ""],
  visual_id: Int[Array, "B"],
  text_id: Int[Array, "R"],
  mask: Bool[Array, "B"],
  *,
  mesh: Mesh,
  chunk: int,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """`losses.info_nce` of a batch that lies on a mesh as `sharding.BATCH` says.

  Args:
    visual, text, scale, visual_id, text_id, mask: as there. Logits and sums
      are float32 whatever these are.
    mesh: the mesh; devices along its axis "model" do the same work.
    chunk: rows of a tile, at most: a tile holds chunk * chunk logits.

  Raises:
    ValueError: chunk < 1, or a batch that the mesh cannot split evenly.
  """
  _check(visual, mesh, chunk)
  scaled, text, pair = _rows(visual, text, scale, visual_id, text_id, mask)
  found = _log_sum_exps(mesh, chunk, scaled, text, pair)
  to_text, to_visual, own, best, pair = found
  nats = (to_text - own + to_visual - own) / 2
  return losses.masked_mean(nats, pair.mask), _metrics(best, pair)


def sigmoid(
  visual: Float[Array, "B E"],
  text: Float[Array, "R E"],
  scale: Float[Array, ""],
  bias: Float[Array, ""],
  visual_id: Int[Array, "B"],
  text_id: Int[Array, "R"],
  mask: Bool[Array, "B"],
  *,
  mesh: Mesh,
  chunk: int,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """`losses.sigmoid`; mesh, chunk and errors as in `info_nce` above."""
  _check(visual, mesh, chunk)
  scaled, text, pair = _rows(visual, text, scale, visual_id, text_id, mask)
  biases = jnp.broadcast_to(bias.astype(jnp.float32), pair.place.shape)
  found = _log_likelihood(mesh, chunk, scaled, biases, text, pair)
  total, best, pair = found
  return -total / jnp.maximum(pair.mask.sum(), 1), _metrics(best, pair)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _log_sum_exps(
  mesh: Mesh,
  chunk: int,
  visual: Float[Array, "R E"],
  text: Float[Array, "R E"],
  pair: Pair,
) -> tuple[Array, Array, Array, Array, Pair]:
  """Of each row [R]: log-sum-exp over texts, over visuals; own logit; best.

  Logits are visual @ text.T: the scale is in `visual` already. Best is the
  place of the visual that a text finds. The last result is `pair`, as it came
  around (see `_around`).
  """
  return _log_sum_exps_forward(mesh, chunk, visual, text, pair)[0]


def _log_sum_exps_forward(mesh, chunk, visual, text, pair):
  """Sums of exponentials below the highest logit so far."""

  def tile(row, column, row_sums, column_sums):
    logits, own = _logits(row, column)
    visuals = _once(logits, row[1], column[1])
    over_visuals, found, best = column_sums
    best = _best(over_visuals[0], best, visuals, row[1].place)
    over_visuals = _add(over_visuals, visuals, axis=0)
    found += jnp.where(own, logits, 0.0).sum(axis=0)
    return _add(row_sums, logits, axis=1), (over_visuals, found, best)

  zero = jnp.zeros(pair.mask.shape)
  least = zero + losses.EXCLUDED
  (_, home), over_texts, (over_visuals, own, best) = _around(
    mesh,
    chunk,
    tile,
    rows=(visual, pair),
    columns=(text, pair),
    row_sums=(least, zero),
    column_sums=((least, zero), zero, pair.place),
  )
  to_text, to_visual = (
    top + jnp.log(total) for top, total in (over_texts, over_visuals)
  )
  saved = (visual, text, pair, over_texts, over_visuals)
  return (to_text, to_visual, own, best, home), saved


def _log_sum_exps_backward(mesh, chunk, saved, slopes):
  """A sum's slope spreads over its logits by their shares of the total."""
  visual, text, pair, (row_top, row_total), (column_top, column_total) = saved
  by_text, by_visual, by_own, *_ = slopes

  def tile(row, column, row_sums, column_sums):
    logits, own = _logits(row[:2], column[:2])
    (row_top, by_text), (column_top, by_visual, by_own) = row[2:], column[2:]
    # exp(logits - log_sum_exp) would round what the subtraction cancels.
    slope = by_text[:, None] * jnp.exp(logits - row_top[:, None])
    visuals = _once(logits, row[1], column[1])
    slope += by_visual[None] * jnp.exp(visuals - column_top[None])
    slope += jnp.where(own, by_own[None], 0.0)
    of_row = row_sums[0] + slope @ column[0]
    return (of_row,), (column_sums[0] + slope.T @ row[0],)

  _, (of_visual,), (of_text,) = _around(
    mesh,
    chunk,
    tile,
    rows=(visual, pair, row_top, by_text / row_total),
    columns=(text, pair, column_top, by_visual / column_total, by_own),
    row_sums=(jnp.zeros_like(visual),),
    column_sums=(jnp.zeros_like(text),),
  )
  return of_visual, of_text, None


_log_sum_exps.defvjp(_log_sum_exps_forward, _log_sum_exps_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _log_likelihood(
  mesh: Mesh,
  chunk: int,
  visual: Float[Array, "R E"],
  bias: Float[Array, "R"],
  text: Float[Array, "R E"],
  pair: Pair,
) -> tuple[Float[Array, ""], Int[Array, "R"], Pair]:
  """Sum over pairs of log sigma(z_ij l_ij); best and `pair` as above.

  Logits are visual @ text.T + bias: the scale is in `visual` already, and the
  bias is the same number for each row, so that nothing here is summed twice.
  """

  def tile(row, column, row_sums, column_sums):
    log_p, _, *found = _judge(row, column, *column_sums)
    return (row_sums[0] + log_p,), tuple(found)

  zero = jnp.zeros_like(bias)
  (_, home), (log_p,), (_, best) = _around(
    mesh,
    chunk,
    tile,
    rows=(visual, pair, bias),
    columns=(text, pair),
    row_sums=(zero,),
    column_sums=(zero + losses.EXCLUDED, pair.place),
  )
  return log_p.sum(), best, home


def _log_likelihood_forward(mesh, chunk, visual, bias, text, pair):
  """Value and gradient in one round."""

  def tile(row, column, row_sums, column_sums):
    log_p, slope, *found = _judge(row, column, *column_sums[:2])
    row_sums = (
      row_sums[0] + log_p,
      row_sums[1] + slope @ column[0],
      row_sums[2] + slope.sum(axis=1),
    )
    return row_sums, (*found, column_sums[2] + slope.T @ row[0])

  zero = jnp.zeros_like(bias)
  (_, home), (log_p, *of_rows), (_, best, of_text) = _around(
    mesh,
    chunk,
    tile,
    rows=(visual, pair, bias),
    columns=(text, pair),
    row_sums=(zero, jnp.zeros_like(visual), zero),
    column_sums=(zero + losses.EXCLUDED, pair.place, jnp.zeros_like(text)),
  )
  return (log_p.sum(), best, home), (*of_rows, of_text)


def _log_likelihood_backward(mesh, chunk, saved, slopes):
  return *(slopes[0] * x for x in saved), None


_log_likelihood.defvjp(_log_likelihood_forward, _log_likelihood_backward)


def _judge(row, column, top, best):
  """Of a tile: log p of each row, slope of each logit, best of each column."""
  logits, own = _logits(row[:2], column)
  logits += row[2][:, None]  # a logit that is left out stays EXCLUDED
  signed = jnp.where(own, logits, -logits)
  slope = jnp.where(own, 1.0, -1.0) * jax.nn.sigmoid(-signed)
  best = _best(top, best, logits, row[1].place)
  top = jnp.maximum(top, logits.max(axis=0))
  return jax.nn.log_sigmoid(signed).sum(axis=1), slope, top, best


def _logits(row, column):
  """Logits of a tile, EXCLUDED where no pair; which are own pairs."""
  (visual, one), (text, other) = row, column
  own = one.place[:, None] == other.place[None]
  same = one.visual_id[:, None] == other.visual_id[None]
  same |= one.text_id[:, None] == other.text_id[None]
  valid = one.mask[:, None] & other.mask[None]
  keep = (own | ~same) & valid
  return jnp.where(keep, visual @ text.T, losses.EXCLUDED), own & valid


def _once(logits, row: Pair, column: Pair):
  """Of `logits` those that a text compares: each visual in its first row.

  EXCLUDED are then also visuals with a caption that is the text.
  """
  count = row.captions.shape[1]
  if count == 1:
    return logits
  own = row.place[:, None] == column.place[None]
  keep = (row.place % count == 0)[:, None]
  for m in range(count):
    keep &= row.captions[:, m, None] != column.text_id[None]
  return jnp.where(own | keep, logits, losses.EXCLUDED)


def _add(sums, logits, axis):
  """One more tile in a log-sum-exp: (top, total) of top + log(total)."""
  top, total = sums
  new = jnp.maximum(top, logits.max(axis=axis))
  each = jnp.exp(logits - jnp.expand_dims(new, axis))
  return new, total * jnp.exp(top - new) + each.sum(axis=axis)


def _best(top, best, logits, index):
  """Index of the highest logit of each column; the lower index of equals."""
  here = logits.max(axis=0)
  last = jnp.iinfo(index.dtype).max
  first = jnp.where(logits == here[None], index[:, None], last).min(axis=0)
  tie = jnp.where(here == top, jnp.minimum(first, best), best)
  return jnp.where(here > top, first, tie)


def _around(mesh, chunk, tile: Tile, *, rows, columns, row_sums, column_sums):
  """Columns, and both sides' sums, after every row has met every column.

  All arguments but the first three are pytrees of arrays with R first. `tile`
  is called with some rows of each and returns their new sums.

  Columns come home unchanged. Sums over devices of what they hold should be
  taken of these: of those that were given, they might be taken while the ring
  turns, and the CPU backend, short of threads, waits forever in two
  collectives at once.
  """
  axes = sharding.BATCH[0]
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  ring = [(i, (i + 1) % ways) for i in range(ways)]
  shift = functools.partial(jax.lax.ppermute, axis_name=axes, perm=ring)

  def local(*sides):
    size = sides[1][0].shape[0]
    rows, columns, *sums = _split(sides, chunk)

    def step(state, _):
      columns, row_sums, column_sums = state
      # Not after the tiles: these travel while the tiles are computed.
      coming = jax.tree.map(shift, columns)
      row_sums, column_sums = _meet(tile, rows, columns, row_sums, column_sums)
      return (coming, row_sums, jax.tree.map(shift, column_sums)), None

    if ways == 1:
      found = columns, *_meet(tile, rows, columns, *sums)
    else:
      found, _ = jax.lax.scan(step, (columns, *sums), length=ways)
    return _join(found, size)

  spread = jax.shard_map(
    local, mesh=mesh, in_specs=sharding.BATCH, out_specs=sharding.BATCH
  )
  return spread(rows, columns, row_sums, column_sums)


def _meet(tile: Tile, rows, columns, row_sums, column_sums):
  """Every chunk of rows with every chunk of columns; sums are chunked too."""

  def column(row_sums, block):
    columns, column_sums = block

    def row(column_sums, block):
      row_sums, column_sums = tile(block[0], columns, block[1], column_sums)
      return column_sums, row_sums

    return jax.lax.scan(row, column_sums, (rows, row_sums))[::-1]

  return jax.lax.scan(column, row_sums, (columns, column_sums))


def _split(tree, chunk: int):
  """Arrays [R, ...] -> [chunks, R / chunks, ...], padded with zeros.

  Chunks as equal as can be; what is padded is masked, as false is zero.
  """

  def split(x):
    count = -(-x.shape[0] // chunk)
    size = -(-x.shape[0] // count)
    pad = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad).reshape(count, size, *x.shape[1:])

  return jax.tree.map(split, tree)


def _join(tree, size: int):
  """Undoes `_split` of arrays with that many rows."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], tree)


def _check(visual, mesh: Mesh, chunk: int) -> None:
  if chunk < 1:
    raise ValueError(
      f"chunk: must be at least 1 row; got {chunk}. 1024 is a good start"
    )
  sharding.check_batch(visual.shape[0], mesh, "batch")


def _rows(visual, text, scale, visual_id, text_id, mask):
  """Scaled visuals and texts, float32, R rows each; and who they are."""
  scaled = scale.astype(jnp.float32) * visual.astype(jnp.float32)
  count = text.shape[0]
  scaled, visual_id, mask = (
    jnp.repeat(x, count // x.shape[0], axis=0)
    for x in (scaled, visual_id, mask)
  )
  captions = text_id.reshape(visual.shape[0], -1)
  captions = jnp.repeat(captions, count // visual.shape[0], axis=0)
  pair = Pair(jnp.arange(count), visual_id, text_id, captions, mask)
  return scaled, text.astype(jnp.float32), pair


def _metrics(best, pair: Pair) -> dict[str, Array]:
  hit = (best == pair.place).astype(jnp.float32)
  return {"batch_recall": losses.masked_mean(hit, pair.mask)}
