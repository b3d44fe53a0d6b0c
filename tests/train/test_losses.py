"""Losses against loops that say the formula aloud."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from fs_jax.train import losses

B, M, E = 5, 2, 4
# Visuals 0 and 3 are one; captions 1 and 6 are one string; row 4 is padding.
VISUAL_ID = np.array([0, 1, 2, 0, 9])
TEXT_ID = np.array([0, 1, 2, 3, 4, 5, 1, 7, 8, 9])
MASK = np.array([True, True, True, True, False])
SCALE, BIAS = 3.0, -1.0


def rows(n, seed):
  x = np.random.default_rng(seed).normal(size=(n, E)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def visual():
  return rows(B, 0)


@pytest.fixture(scope="module")
def text():
  return rows(B * M, 1)


def weights(visual_id, text_id, mask, m):
  """w_ij of texts' own visual i and text j, in the words of the formula."""
  n = len(text_id)
  w = np.zeros((n, n), bool)
  for i in range(n):
    for j in range(n):
      valid = mask[i // m] and mask[j // m]
      alike = visual_id[i // m] == visual_id[j // m] or text_id[i] == text_id[j]
      w[i, j] = valid and (i == j or not alike)
  return w


def among_visuals(visual_id, text_id, mask, m):
  """Visuals that text r is shown: [R] of sets, each visual once."""
  shown = []
  for r in range(len(text_id)):
    own = r // m
    others = {
      v
      for v in range(len(visual_id))
      if mask[v]
      and visual_id[v] != visual_id[own]
      and text_id[r] not in text_id[v * m : (v + 1) * m]
    }
    shown.append({own} | others)
  return shown


def naive_info_nce(visual, text, visual_id, text_id, mask):
  m = len(text) // len(visual)
  w = weights(visual_id, text_id, mask, m)
  shown = among_visuals(visual_id, text_id, mask, m)
  total, count = 0.0, 0
  for i in range(len(text)):
    if not mask[i // m]:
      continue
    dot = lambda v, r: SCALE * float(visual[v] @ text[r])
    js = range(len(text))
    to_text = sum(np.exp(dot(i // m, j)) for j in js if w[i, j])
    to_visual = sum(np.exp(dot(v, i)) for v in shown[i])
    total -= dot(i // m, i) - (np.log(to_text) + np.log(to_visual)) / 2
    count += 1
  return total / max(count, 1)


def naive_sigmoid(visual, text, visual_id, text_id, mask):
  m = len(text) // len(visual)
  w = weights(visual_id, text_id, mask, m)
  total = 0.0
  for i in range(len(text)):
    for j in range(len(text)):
      if w[i, j]:
        z = 1 if i == j else -1
        logit = SCALE * float(visual[i // m] @ text[j]) + BIAS
        total -= -np.log1p(np.exp(-z * logit))
  return total / max(mask.sum() * m, 1)


def info_nce(*pairs):
  pairs = losses.Pairs(*map(jnp.asarray, pairs))
  return losses.info_nce(pairs, jnp.float32(SCALE))


def sigmoid(*pairs):
  pairs = losses.Pairs(*map(jnp.asarray, pairs))
  return losses.sigmoid(pairs, jnp.float32(SCALE), jnp.float32(BIAS))


CONTRASTIVE = [(info_nce, naive_info_nce), (sigmoid, naive_sigmoid)]


@pytest.mark.parametrize(("loss", "naive"), CONTRASTIVE)
@pytest.mark.parametrize("m", [1, 2])
def test_contrastive_losses_are_their_formulas(loss, naive, m, visual, text):
  case = (visual, text[: B * m], VISUAL_ID, TEXT_ID[: B * m], MASK)
  np.testing.assert_allclose(loss(*case)[0], naive(*case), rtol=1e-5)
  nothing = (visual, text[: B * m], np.arange(B), np.arange(B * m), MASK)
  # The ids matter at all, and so does the mask.
  assert abs(float(loss(*case)[0] - loss(*nothing)[0])) > 1e-3


@pytest.mark.parametrize(("loss", "naive"), CONTRASTIVE)
@pytest.mark.parametrize("which", ["visual_id", "text_id"])
def test_each_id_alone_excludes_a_pair(loss, naive, which, visual, text):
  visual_id, text_id = np.arange(B), np.arange(B)
  plain = loss(visual, text[:B], visual_id, text_id, np.ones(B, bool))[0]
  {"visual_id": visual_id, "text_id": text_id}[which][3] = 0
  case = (visual, text[:B], visual_id, text_id, np.ones(B, bool))
  np.testing.assert_allclose(loss(*case)[0], naive(*case), rtol=1e-5)
  assert abs(float(loss(*case)[0] - plain)) > 1e-3


def test_a_text_counts_a_visual_once_and_a_visual_every_text():
  """Of two visuals with two captions each, when all look alike."""
  zero = jnp.zeros((2, E)), jnp.zeros((4, E))
  ids = np.arange(2), np.arange(4), np.ones(2, bool)
  both = (np.log(2) + np.log(3)) / 2  # from a text, from a visual
  np.testing.assert_allclose(info_nce(*zero, *ids)[0], both, rtol=1e-6)
  # Any caption of the other that is the text takes it away from the text.
  ids = np.arange(2), np.array([0, 1, 2, 0]), np.ones(2, bool)
  to_visual = (0 + np.log(2) + np.log(2) + 0) / 4
  to_text = (np.log(2) + np.log(3) + np.log(3) + np.log(2)) / 4
  np.testing.assert_allclose(
    info_nce(*zero, *ids)[0], (to_visual + to_text) / 2, rtol=1e-6
  )


def test_with_one_caption_each_pairs_are_counted_as_they_were():
  """To the last bit: the table of pairs is the table of visuals and texts."""
  visual, text = map(jnp.asarray, (rows(B, 0), rows(B, 1)))
  visual_id, text_id = (
    jnp.asarray(VISUAL_ID),
    jnp.asarray(TEXT_ID[[0, 1, 1, 3, 4]]),
  )
  mask = jnp.asarray(MASK)

  def plain(visual, text):
    logits = SCALE * visual @ text.T
    keep = losses.comparable(visual_id, text_id) & mask[:, None] & mask[None]
    logits = jnp.where(keep, logits, losses.EXCLUDED)
    own = jnp.diagonal(logits)
    nats = jax.nn.logsumexp(logits, axis=1) - own
    nats += jax.nn.logsumexp(logits, axis=0) - own
    return losses.masked_mean(nats / 2, mask)

  of = lambda *x: info_nce(*x, visual_id, text_id, mask)[0]
  got, want = (jax.value_and_grad(f, (0, 1))(visual, text) for f in (of, plain))
  assert got[0] == want[0] > 0
  jax.tree.map(np.testing.assert_array_equal, got[1], want[1])


def test_captions_of_a_visual_are_visuals_given_twice(visual, text):
  """To the sigmoid loss, which judges pairs."""
  once = sigmoid(visual, text, VISUAL_ID, TEXT_ID, MASK)
  twice = sigmoid(
    *(visual.repeat(M, axis=0), text, VISUAL_ID.repeat(M), TEXT_ID),
    MASK.repeat(M),
  )
  np.testing.assert_allclose(once[0], twice[0], rtol=1e-6)


@pytest.mark.parametrize(("loss", "_"), CONTRASTIVE)
def test_masked_rows_change_nothing(loss, _, visual, text):
  def value(v, t, last):
    ids = (np.append(VISUAL_ID[:4], last), np.append(TEXT_ID[:8], (last, last)))
    return loss(v, t, *ids, MASK)[0]

  def run(filler, last):
    v, t = visual.copy(), text.copy()
    v[4], t[8:] = filler[0], filler[1:]
    return jax.value_and_grad(value, argnums=(0, 1))(v, t, last)

  one, (dv, dt) = run(rows(3, 7), 20)
  # Ids of a true row, and vectors equal to one: still nothing.
  other, (dv2, dt2) = run(rows(3, 8) * 9, 0)
  assert one == other
  np.testing.assert_array_equal(dv, dv2)
  np.testing.assert_array_equal(dt, dt2)
  assert (np.asarray(dv)[4] == 0).all()
  assert (np.asarray(dt)[8:] == 0).all()
  assert np.abs(dv[:4]).min(axis=1).max() > 0
  cut = loss(visual[:4], text[:8], VISUAL_ID[:4], TEXT_ID[:8], MASK[:4])[0]
  np.testing.assert_allclose(one, cut, rtol=1e-6)


@pytest.mark.parametrize(("loss", "_"), CONTRASTIVE)
def test_a_batch_of_padding_is_zero_with_a_gradient_of_zero(loss, _, text):
  zero = jnp.zeros((B, E))
  value, grads = jax.value_and_grad(
    lambda v, t: loss(v, t, VISUAL_ID, TEXT_ID, np.zeros(B, bool))[0], (0, 1)
  )(zero, jnp.asarray(text))
  assert value == 0
  for g in grads:
    np.testing.assert_array_equal(g, np.zeros_like(g))


@pytest.mark.parametrize(("loss", "_"), CONTRASTIVE)
def test_batch_recall_counts_texts_that_find_their_own(loss, _):
  visual = text = np.eye(4, dtype=np.float32)
  ids, mask = np.arange(4), np.array([True, True, True, False])
  assert loss(visual, text, ids, ids, mask)[1]["batch_recall"] == 1
  crossed = text[[1, 0, 2, 3]]
  recall = loss(visual, crossed, ids, ids, mask)[1]["batch_recall"]
  np.testing.assert_allclose(recall, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize(("loss", "_"), CONTRASTIVE)
@pytest.mark.parametrize("field", losses.Pairs._fields)
def test_a_field_of_another_shape_is_refused(loss, _, field, visual, text):
  """By its annotation, which tests check at run time."""
  pairs = losses.Pairs(visual, text, VISUAL_ID, TEXT_ID, MASK)
  loss(*pairs)
  wrong = getattr(pairs, field)[:-1]
  if field == "text":  # R goes by text_id too: another width
    wrong = text[:, :-1]
  with pytest.raises(jaxtyping.TypeCheckError, match=f"'?{field}'?"):
    loss(*pairs._replace(**{field: wrong}))


def test_captioning_has_one_divisor_for_the_batch():
  rng = np.random.default_rng(0)
  lengths = np.array([[1, 4], [2, 3], [5, 1]])  # [B,S] words and EOS
  words = np.zeros((3, 2, 2, 5), np.float32)
  for b in range(3):
    for s in range(2):
      words[b, s, :, : lengths[b, s]] = -rng.random((2, lengths[b, s]))
  mask = np.array([True, False, True])
  total = count = 0.0
  for b in (0, 2):
    for s in range(2):
      total += words[b, s].sum()
      count += 2 * lengths[b, s]
  loss = functools.partial(
    losses.captioning, targets=jnp.float32(2 * lengths), mask=jnp.asarray(mask)
  )
  value, grad = jax.value_and_grad(loss)(jnp.asarray(words))
  np.testing.assert_allclose(value, -total / count, rtol=1e-6)
  assert (np.asarray(grad)[1] == 0).all()
  assert (np.asarray(grad)[[0, 2]] != 0).all()


def test_captioning_of_padding_is_zero():
  value, grad = jax.value_and_grad(losses.captioning)(
    jnp.ones((2, 1, 2, 3)), jnp.ones((2, 1)), jnp.zeros(2, bool)
  )
  assert value == 0
  assert (np.asarray(grad) == 0).all()


def test_distillation_is_cross_entropy_over_true_candidates():
  rng = np.random.default_rng(0)
  teacher, student = rng.normal(size=(2, 3, 5)).astype(np.float32) * 2
  mask = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
  cross, entropy = [], []
  for q in range(2):
    here = mask[q]
    p = np.exp(teacher[q][here])
    p /= p.sum()
    s = np.exp(student[q][here])
    s /= s.sum()
    cross.append(-(p * np.log(s)).sum())
    entropy.append(-(p * np.log(p)).sum())
  (got, said), grad = jax.value_and_grad(
    losses.distillation, argnums=1, has_aux=True
  )(jnp.asarray(teacher), jnp.asarray(student), jnp.asarray(mask))
  np.testing.assert_allclose(got, np.mean(cross), rtol=1e-5)
  np.testing.assert_allclose(said, np.mean(entropy), rtol=1e-5)
  assert (np.asarray(grad)[~mask] == 0).all()
  assert (np.asarray(grad)[mask] != 0).all()


def test_a_student_that_agrees_reaches_the_teachers_entropy():
  scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)))
  mask = jnp.ones(scores.shape, bool)
  grad, entropy = jax.grad(
    lambda s: losses.distillation(scores, s, mask), has_aux=True
  )(scores + 7.0)  # a constant more changes no softmax
  np.testing.assert_allclose(grad, 0, atol=1e-6)
  cross, _ = losses.distillation(scores, scores, mask)
  np.testing.assert_allclose(cross, entropy, rtol=1e-6)


def test_distillation_over_nothing_is_zero_with_a_gradient_of_zero():
  x = jnp.ones((2, 3))
  value, grad = jax.value_and_grad(
    lambda s: losses.distillation(x, s, jnp.zeros((2, 3), bool))[0]
  )(x)
  assert value == 0
  assert (np.asarray(grad) == 0).all()


def test_matching_is_binary_cross_entropy():
  logits = np.array([[2.0, -1.0], [0.5, 3.0], [9.0, 9.0]], np.float32)
  same = np.array([[True, False]] * 3)
  mask = np.array([[True, True], [True, True], [False, False]])
  p = 1 / (1 + np.exp(-logits[:2]))
  want = -np.log(np.where(same[:2], p, 1 - p)).mean()
  loss, accuracy = losses.matching(
    jnp.asarray(logits), jnp.asarray(same), jnp.asarray(mask)
  )
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  assert accuracy == 0.75


def test_large_scores_stay_finite():
  visual = text = np.eye(4, dtype=np.float32)[:, :E]
  pairs = losses.Pairs(
    *map(jnp.asarray, (visual, text, np.arange(4), np.arange(4))),
    jnp.ones(4, bool),
  )
  for scale in (1e-3, 100.0):
    value, grad = jax.value_and_grad(
      lambda v, s: losses.info_nce(pairs._replace(visual=v), s)[0], (0, 1)
    )(pairs.visual, jnp.float32(scale))
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grad)
