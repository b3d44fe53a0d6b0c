"""Losses: pure functions of embeddings and scores, float32.

Formulas follow the method as understood from its abstract and from good
practice (see README); none claims to be an equation of the paper.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

EXCLUDED = -1e30  # finite, so that a fully masked row has a gradient of zero


class Pairs(NamedTuple):
  """The embedded pairs of a batch: visuals, each with its M captions.

  Text r belongs to visual r // M, where M = R // B. Equal ids mark what must
  not be told apart; masked visuals and their texts enter no sum.
  """

  visual: Float[Array, "B E"]
  text: Float[Array, "R E"]
  visual_id: Int[Array, "B"]
  text_id: Int[Array, "R"]
  mask: Bool[Array, "B"]


def check_shapes(
  visual: Float[Array, "B E"],
  text: Float[Array, "R E"],
  visual_id: Int[Array, "B"],
  text_id: Int[Array, "R"],
  mask: Bool[Array, "B"],
) -> None:
  """Checks a `Pairs`, unpacked, where annotations are checked: in tests.

  They check a call's arguments, and never the fields of a tuple.
  """


def comparable(
  visual_id: Int[Array, "R"], text_id: Int[Array, "R"]
) -> Bool[Array, "R R"]:
  """Marks the pairs (i, j) that may be told apart: own ones, true negatives.

  Two captions of one visual are no negatives of each other, nor are two
  visuals with the same caption.
  """
  same = visual_id[:, None] == visual_id[None]
  same |= text_id[:, None] == text_id[None]
  return ~same | jnp.eye(visual_id.shape[0], dtype=bool)


def per_text(texts: int, *arrays: Array) -> tuple[Array, ...]:
  """Repeats per-visual rows for each of the visual's captions."""
  return tuple(jnp.repeat(a, texts // a.shape[0], axis=0) for a in arrays)


def info_nce(
  pairs: Pairs, scale: Float[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """Mean of both directions' cross-entropy of the own pair, in nats.

  Logits are s f.g, s being `scale`. From a visual's own pair to the texts, the
  denominator is that pair and every text it is `comparable` with. From a text
  to the visuals, it is the own visual and every other one, once however many
  captions it has, unless it has the own one's id or any of its captions has
  the text's id. Masked rows enter no sum and no divisor.
  """
  check_shapes(*pairs)
  visual, text, visual_id, text_id, mask = pairs
  texts, visuals = text.shape[0], visual.shape[0]
  owner = jnp.arange(texts) // (texts // visuals)
  logits = scale * visual @ text.T  # [B,R]
  each, row_id, valid = per_text(texts, logits, visual_id, mask)
  among_texts = comparable(row_id, text_id) & valid[:, None] & valid[None]
  each = jnp.where(among_texts, each, EXCLUDED)
  if texts == visuals:  # both tables are one, and so is what is computed
    logits = each
  else:
    own = jnp.arange(visuals)[:, None] == owner[None]
    among_visuals = own | ~_alike(visual_id, row_id, text_id)
    among_visuals &= mask[:, None] & valid[None]
    logits = jnp.where(among_visuals, logits, EXCLUDED)
  pair = jnp.diagonal(each)
  to_text = jax.nn.logsumexp(each, axis=1) - pair
  to_visual = jax.nn.logsumexp(logits, axis=0) - pair
  best = logits.argmax(axis=0) == owner
  metrics = {"batch_recall": masked_mean(best.astype(jnp.float32), valid)}
  return masked_mean((to_text + to_visual) / 2, valid), metrics


def _alike(
  visual_id: Int[Array, "B"],
  owner_id: Int[Array, "R"],
  text_id: Int[Array, "R"],
) -> Bool[Array, "B R"]:
  """Marks the visuals a text may not be told apart from, its own included."""
  captions = text_id.reshape(visual_id.shape[0], -1)
  same = visual_id[:, None] == owner_id[None]
  for m in range(captions.shape[1]):
    same |= captions[:, m, None] == text_id[None]
  return same


def sigmoid(
  pairs: Pairs, scale: Float[Array, ""], bias: Float[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """Every pair its own decision: -sum_ij w_ij log sigma(z_ij (s f.g + b)) / R.

  i and j are pairs, M of each visual; z is 1 for the own pair and -1 elsewhere;
  w drops pairs that are not `comparable` and masked rows; R counts valid rows.
  """
  check_shapes(*pairs)
  visual, text, visual_id, text_id, mask = pairs
  visual, visual_id, mask = per_text(text.shape[0], visual, visual_id, mask)
  logits = scale * visual @ text.T + bias
  keep = comparable(visual_id, text_id) & mask[:, None] & mask[None]
  sign = 2 * jnp.eye(text.shape[0]) - 1
  log_p = jnp.where(keep, jax.nn.log_sigmoid(sign * logits), 0.0)
  valid = jnp.maximum(mask.sum(), 1)
  best = jnp.where(keep, logits, EXCLUDED).argmax(axis=0)
  hit = (best == jnp.arange(text.shape[0])).astype(jnp.float32)
  return -log_p.sum() / valid, {"batch_recall": masked_mean(hit, mask)}


def captioning(
  words: Float[Array, "B S 2 I"],
  targets: Float[Array, "B S"],
  mask: Bool[Array, "B"],
) -> Float[Array, ""]:
  """Nats per target, both reading directions: -sum h / sum n.

  One divisor for the whole batch, so that a caption weighs as much as it has
  words. `words` is 0 at padding; `targets` is n of each caption.
  """
  valid = mask.astype(jnp.float32)
  total = (words.sum(axis=(2, 3)) * valid[:, None]).sum()
  return -total / jnp.maximum((targets * valid[:, None]).sum(), 1)


def distillation(
  teacher: Float[Array, "*Q K"],
  student: Float[Array, "*Q K"],
  mask: Bool[Array, "*Q K"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Cross-entropy of teacher and student over candidate lists, and entropy.

  Both arguments are logits over the last axis: u / tau and s f.g. The second
  result is the teacher's mean entropy in nats: near 0 it teaches no more than
  the captions do, near log K it prefers no candidate.
  """
  teacher = jnp.where(mask, teacher, EXCLUDED)
  student = jnp.where(mask, student, EXCLUDED)
  p = jax.nn.softmax(teacher, axis=-1)
  log_p = jax.nn.log_softmax(teacher, axis=-1)
  log_q = jax.nn.log_softmax(student, axis=-1)
  cross = -jnp.where(mask, p * log_q, 0.0).sum(axis=-1)
  entropy = -jnp.where(mask, p * log_p, 0.0).sum(axis=-1)
  valid = mask.any(axis=-1)
  return masked_mean(cross, valid), masked_mean(entropy, valid)


def matching(
  logits: Float[Array, "*P"], same: Bool[Array, "*P"], mask: Bool[Array, "*P"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Binary cross-entropy of "this caption belongs to this visual", accuracy."""
  sign = jnp.where(same, 1.0, -1.0)
  right = ((logits > 0) == same).astype(jnp.float32)
  loss = masked_mean(-jax.nn.log_sigmoid(sign * logits), mask)
  return loss, masked_mean(right, mask)


def masked_mean(
  x: Float[Array, "*B"], mask: Bool[Array, "*B"]
) -> Float[Array, ""]:
  """Mean over the true rows; 0 if there are none."""
  return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)
