"""Contrastive losses of a batch whose table of pairs fits no memory.

Values, gradients and metrics are those of `losses.info_nce` and
`losses.sigmoid`, but all pairs of a batch are never held at once. Visuals stay
on their device; blocks of texts, with their identity and sums so far, travel
around the ring of devices, and meet every visual. Within a device the meeting
goes tile by tile, `chunk` visuals by `chunk` texts, so that memory grows with
the rows of a device and not with their square. On one device only tiles are
left.

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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from fs_jax.machine import sharding
from fs_jax.train import losses, tiles

Side = tiles.Side
Sums = tiles.Sums


class Identity(NamedTuple):
  """Place and ids of each row: they decide which other rows are negatives."""

  place: Int[Array, "R"]  # in the global batch
  visual_id: Int[Array, "R"]
  text_id: Int[Array, "R"]
  captions: Int[Array, "R M"]  # text ids of all captions of the row's visual
  mask: Bool[Array, "R"]


def info_nce(
  pairs: losses.Pairs, scale: Float[Array, ""], *, mesh: Mesh, chunk: int
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """`losses.info_nce` of a batch that lies on a mesh as `sharding.BATCH` says.

  Args:
    pairs: the batch's embedded pairs. Logits and sums are float32 whatever
      these are.
    scale: s.
    mesh: the mesh; devices along its axis "model" do the same work.
    chunk: rows of a tile, at most: a tile holds chunk * chunk logits.

  Raises:
    ValueError: chunk < 1, or a batch that the mesh cannot split evenly.
  """
  _check(pairs, mesh, chunk)
  scaled, text, identity = _rows(pairs, scale)
  to_text, to_visual, own, best, identity = _log_sum_exps(
    mesh, chunk, scaled, text, identity
  )
  nats = (to_text - own + to_visual - own) / 2
  return losses.masked_mean(nats, identity.mask), _metrics(best, identity)


def sigmoid(
  pairs: losses.Pairs,
  scale: Float[Array, ""],
  bias: Float[Array, ""],
  *,
  mesh: Mesh,
  chunk: int,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """`losses.sigmoid`; mesh, chunk and errors as in `info_nce` above."""
  _check(pairs, mesh, chunk)
  scaled, text, identity = _rows(pairs, scale)
  biases = jnp.broadcast_to(bias.astype(jnp.float32), identity.place.shape)
  total, best, identity = _log_likelihood(
    mesh, chunk, scaled, biases, text, identity
  )
  loss = -total / jnp.maximum(identity.mask.sum(), 1)
  return loss, _metrics(best, identity)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _log_sum_exps(
  mesh: Mesh,
  chunk: int,
  visual: Float[Array, "R E"],
  text: Float[Array, "R E"],
  identity: Identity,
) -> tuple[
  Float[Array, "R"],
  Float[Array, "R"],
  Float[Array, "R"],
  Int[Array, "R"],
  Identity,
]:
  """Log-sum-exp of each row over texts and over visuals; own logit; best.

  Logits are visual @ text.T: the scale is in `visual` already. Best is the
  place of the visual that a text finds. The last result is `identity`, as it
  came around (see `tiles.go_around`).
  """
  return _log_sum_exps_forward(mesh, chunk, visual, text, identity)[0]


def _log_sum_exps_forward(
  mesh: Mesh,
  chunk: int,
  visual: Float[Array, "R E"],
  text: Float[Array, "R E"],
  identity: Identity,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
  """Sums of exponentials below the highest logit so far."""

  def tile(
    row: Side, column: Side, row_sums: Sums, column_sums: Sums
  ) -> tuple[Sums, Sums]:
    logits, own = _logits(row, column)
    visuals = _once(logits, row[1], column[1])
    over_visuals, own_logit, best = column_sums
    best = _best(over_visuals[0], best, visuals, row[1].place)
    over_visuals = _add(over_visuals, visuals, axis=0)
    own_logit += jnp.where(own, logits, 0.0).sum(axis=0)
    over_texts = _add(row_sums, logits, axis=1)
    return over_texts, (over_visuals, own_logit, best)

  zero = jnp.zeros(identity.mask.shape)
  least = zero + losses.EXCLUDED
  (_, home), over_texts, (over_visuals, own, best) = tiles.go_around(
    mesh,
    chunk,
    tile,
    rows=(visual, identity),
    columns=(text, identity),
    row_sums=(least, zero),
    column_sums=((least, zero), zero, identity.place),
  )
  to_text, to_visual = (
    top + jnp.log(total) for top, total in (over_texts, over_visuals)
  )
  saved = (visual, text, identity, over_texts, over_visuals)
  return (to_text, to_visual, own, best, home), saved


def _log_sum_exps_backward(
  mesh: Mesh, chunk: int, saved: tuple[Any, ...], slopes: tuple[Any, ...]
) -> tuple[Float[Array, "R E"], Float[Array, "R E"], None]:
  """A sum's slope spreads over its logits by their shares of the total."""
  visual, text, identity, over_texts, over_visuals = saved
  (row_top, row_total), (column_top, column_total) = over_texts, over_visuals
  by_text, by_visual, by_own, *_ = slopes

  def tile(
    row: Side, column: Side, row_sums: Sums, column_sums: Sums
  ) -> tuple[Sums, Sums]:
    logits, own = _logits(row[:2], column[:2])
    (row_top, by_text), (column_top, by_visual, by_own) = row[2:], column[2:]
    # exp(logits - log_sum_exp) would round what the subtraction cancels.
    slope = by_text[:, None] * jnp.exp(logits - row_top[:, None])
    visuals = _once(logits, row[1], column[1])
    slope += by_visual[None] * jnp.exp(visuals - column_top[None])
    slope += jnp.where(own, by_own[None], 0.0)
    row_slope = row_sums[0] + slope @ column[0]
    return (row_slope,), (column_sums[0] + slope.T @ row[0],)

  _, (visual_slope,), (text_slope,) = tiles.go_around(
    mesh,
    chunk,
    tile,
    rows=(visual, identity, row_top, by_text / row_total),
    columns=(text, identity, column_top, by_visual / column_total, by_own),
    row_sums=(jnp.zeros_like(visual),),
    column_sums=(jnp.zeros_like(text),),
  )
  return visual_slope, text_slope, None


_log_sum_exps.defvjp(_log_sum_exps_forward, _log_sum_exps_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _log_likelihood(
  mesh: Mesh,
  chunk: int,
  visual: Float[Array, "R E"],
  bias: Float[Array, "R"],
  text: Float[Array, "R E"],
  identity: Identity,
) -> tuple[Float[Array, ""], Int[Array, "R"], Identity]:
  """Sum over pairs of log sigma(z_ij l_ij); best and `identity` as above.

  Logits are visual @ text.T + bias: the scale is in `visual` already, and the
  bias is the same number for each row, so that nothing here is summed twice.
  """

  def tile(
    row: Side, column: Side, row_sums: Sums, column_sums: Sums
  ) -> tuple[Sums, Sums]:
    log_p, _, top, best = _judge(row, column, *column_sums)
    return (row_sums[0] + log_p,), (top, best)

  zero = jnp.zeros_like(bias)
  (_, home), (log_p,), (_, best) = tiles.go_around(
    mesh,
    chunk,
    tile,
    rows=(visual, identity, bias),
    columns=(text, identity),
    row_sums=(zero,),
    column_sums=(zero + losses.EXCLUDED, identity.place),
  )
  return log_p.sum(), best, home


def _log_likelihood_forward(
  mesh: Mesh,
  chunk: int,
  visual: Float[Array, "R E"],
  bias: Float[Array, "R"],
  text: Float[Array, "R E"],
  identity: Identity,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
  """Value and gradient in one round."""

  def tile(
    row: Side, column: Side, row_sums: Sums, column_sums: Sums
  ) -> tuple[Sums, Sums]:
    log_p, slope, top, best = _judge(row, column, *column_sums[:2])
    row_sums = (
      row_sums[0] + log_p,
      row_sums[1] + slope @ column[0],
      row_sums[2] + slope.sum(axis=1),
    )
    return row_sums, (top, best, column_sums[2] + slope.T @ row[0])

  zero = jnp.zeros_like(bias)
  (_, home), (log_p, *row_slopes), (_, best, text_slope) = tiles.go_around(
    mesh,
    chunk,
    tile,
    rows=(visual, identity, bias),
    columns=(text, identity),
    row_sums=(zero, jnp.zeros_like(visual), zero),
    column_sums=(zero + losses.EXCLUDED, identity.place, jnp.zeros_like(text)),
  )
  return (log_p.sum(), best, home), (*row_slopes, text_slope)


def _log_likelihood_backward(
  mesh: Mesh, chunk: int, saved: tuple[Any, ...], slopes: tuple[Any, ...]
) -> tuple[Any, ...]:
  return *(slopes[0] * x for x in saved), None


_log_likelihood.defvjp(_log_likelihood_forward, _log_likelihood_backward)


def _judge(
  row: Side, column: Side, top: Float[Array, "c"], best: Int[Array, "c"]
) -> tuple[
  Float[Array, "r"], Float[Array, "r c"], Float[Array, "c"], Int[Array, "c"]
]:
  """Log p of each row of a tile, slope of each logit, top and best so far."""
  logits, own = _logits(row[:2], column)
  logits += row[2][:, None]  # a logit that is left out stays EXCLUDED
  signed = jnp.where(own, logits, -logits)
  slope = jnp.where(own, 1.0, -1.0) * jax.nn.sigmoid(-signed)
  best = _best(top, best, logits, row[1].place)
  top = jnp.maximum(top, logits.max(axis=0))
  return jax.nn.log_sigmoid(signed).sum(axis=1), slope, top, best


def _logits(
  row: Side, column: Side
) -> tuple[Float[Array, "r c"], Bool[Array, "r c"]]:
  """Logits of a tile, EXCLUDED where rows make no pair; own pairs."""
  (visual, one), (text, other) = row, column
  own = one.place[:, None] == other.place[None]
  same = one.visual_id[:, None] == other.visual_id[None]
  same |= one.text_id[:, None] == other.text_id[None]
  valid = one.mask[:, None] & other.mask[None]
  keep = (own | ~same) & valid
  return jnp.where(keep, visual @ text.T, losses.EXCLUDED), own & valid


def _once(
  logits: Float[Array, "r c"], row: Identity, column: Identity
) -> Float[Array, "r c"]:
  """The logits that a text compares: each visual in its first row only.

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


def _add(
  sums: Sums, logits: Float[Array, "r c"], axis: int
) -> tuple[Array, Array]:
  """One more tile in a log-sum-exp: (top, total) of top + log(total)."""
  top, total = sums
  new = jnp.maximum(top, logits.max(axis=axis))
  each = jnp.exp(logits - jnp.expand_dims(new, axis))
  return new, total * jnp.exp(top - new) + each.sum(axis=axis)


def _best(
  top: Float[Array, "c"],
  best: Int[Array, "c"],
  logits: Float[Array, "r c"],
  index: Int[Array, "r"],
) -> Int[Array, "c"]:
  """Index of the highest logit of each column; the lower index of equals."""
  here = logits.max(axis=0)
  last = jnp.iinfo(index.dtype).max
  first = jnp.where(logits == here[None], index[:, None], last).min(axis=0)
  tie = jnp.where(here == top, jnp.minimum(first, best), best)
  return jnp.where(here > top, first, tie)


def _check(pairs: losses.Pairs, mesh: Mesh, chunk: int) -> None:
  losses.check_shapes(*pairs)
  if chunk < 1:
    raise ValueError(
      f"chunk: must be at least 1 row; got {chunk}. 1024 is a good start"
    )
  sharding.check_batch(pairs.visual.shape[0], mesh, "batch")


def _rows(
  pairs: losses.Pairs, scale: Float[Array, ""]
) -> tuple[Float[Array, "R E"], Float[Array, "R E"], Identity]:
  """Scaled visuals and texts, float32, R rows each; and their identity."""
  visual, text, visual_id, text_id, mask = pairs
  scaled = scale.astype(jnp.float32) * visual.astype(jnp.float32)
  count = text.shape[0]
  scaled, visual_id, mask = losses.per_text(count, scaled, visual_id, mask)
  captions = text_id.reshape(visual.shape[0], -1)
  (captions,) = losses.per_text(count, captions)
  identity = Identity(jnp.arange(count), visual_id, text_id, captions, mask)
  return scaled, text.astype(jnp.float32), identity


def _metrics(
  best: Int[Array, "R"], identity: Identity
) -> dict[str, Float[Array, ""]]:
  hit = (best == identity.place).astype(jnp.float32)
  return {"batch_recall": losses.masked_mean(hit, identity.mask)}
