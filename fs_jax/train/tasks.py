"""Objectives: what each stage minimises, as values the loop does not look into.

Parameters are {"fast": ...} or {"slow": ...}; a teacher's are a separate,
frozen argument, never a closure: they are sharded and placed like any others.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fs_jax import config, types
from fs_jax.models import build
from fs_jax.models import slow as slow_models
from fs_jax.search import fusion
from fs_jax.train import losses, ring


def make(
  cfg: config.Config, vocabulary: int, mesh: Mesh | None = None
) -> types.Task:
  """The objective of cfg.stage; `mesh` is that of a loss made in a ring."""
  if cfg.stage == "slow":
    return slow(cfg, vocabulary)
  stages = {"fast": fast, "distill": distill}
  return stages[cfg.stage](cfg, vocabulary, mesh)


def fast(
  cfg: config.Config, vocabulary: int, mesh: Mesh | None = None
) -> types.Task:
  """Contrastive: pairs of a batch told apart."""
  model = build.fast_model(cfg, vocabulary)

  def rows(trained, frozen, batch, key):
    del frozen
    return _embedded(cfg, model, trained["fast"], batch, key)

  def loss(trained, rows, batch):
    return _contrastive(cfg, model, trained["fast"], rows, batch, mesh)

  return types.Task(
    functools.partial(build.init_fast, cfg, vocabulary), rows, loss, _by_row
  )


def slow(cfg: config.Config, vocabulary: int) -> types.Task:
  """Captioning in both directions, or the matching baseline.

  Matching needs hard negatives, a text for each visual and a visual for each
  text: frozen["fast"] draws them among the rows that are on the devices at
  once, in proportion to the softmax of its own scores.
  """
  assert cfg.slow is not None
  model = build.slow_model(cfg, vocabulary)
  null_rate = cfg.slow.null_rate

  def captioned(trained, frozen, batch, key):
    del frozen
    params = trained["slow"]
    drop, blank = jax.random.split(key)
    rngs = {"dropout": drop}
    visual = build.pixels(cfg, batch.visual)
    memory = build.apply(
      model, params, visual, True, method="encode_visual", rngs=rngs
    )
    rows = batch.visual.shape[0]
    unseen = jax.random.uniform(blank, (rows,)) < null_rate
    memory = build.apply(model, params, memory, unseen, method="blank")
    text = batch.text.reshape(rows, -1, batch.text.shape[-1])
    flat = build.apply(
      model, params, batch.text, True, method="read", rngs=rngs
    )
    words = build.apply(
      model,
      params,
      memory,
      flat.reshape(*text.shape[:2], *flat.shape[1:]),
      text,
      True,
      method="word_log_likelihood",
      rngs=rngs,
    )
    return {"words": words, "unseen": unseen.astype(jnp.float32)}

  def captioning(trained, rows, batch):
    del trained
    words, unseen = rows["words"], rows["unseen"] > 0
    text = batch.text.reshape(*words.shape[:2], batch.text.shape[-1])
    n = slow_models.targets_of(text)
    seen = losses.captioning(words, n, batch.mask & ~unseen)
    alone = losses.captioning(words, n, batch.mask & unseen)
    total = losses.captioning(words, n, batch.mask)
    return total, {"nats_per_word": seen, "nats_per_word_unseen": alone}

  def matched(trained, frozen, batch, key):
    """Logits of (own, own), (own, hard text) and (hard visual, own)."""
    params = trained["slow"]
    texts, visuals, found = _hard_negatives(
      cfg, vocabulary, frozen["fast"], batch, key
    )
    rngs = {"dropout": key}
    seen = build.pixels(cfg, batch.visual)
    memory = build.apply(
      model, params, seen, True, method="encode_visual", rngs=rngs
    )
    # A drawn visual is one of the batch: it is not encoded again.
    memory = jax.tree.map(
      lambda x: jnp.stack([x, x, x[visuals]], axis=1).reshape(-1, *x.shape[1:]),
      memory,
    )
    first = batch.text[:: batch.captions_per_visual]
    flat = jnp.stack([first, first[texts]], axis=1).reshape(-1, first.shape[-1])
    states = build.apply(model, params, flat, True, method="read", rngs=rngs)
    of_pair = jnp.array([0, 1, 0])  # the text of each of a row's three pairs
    text, states = (
      x.reshape(-1, 2, *x.shape[1:])[:, of_pair].reshape(-1, 1, *x.shape[1:])
      for x in (flat, states)
    )
    logits = build.apply(
      model,
      params,
      memory,
      states,
      text,
      True,
      method="match_logit",
      rngs=rngs,
    )
    return {"logits": logits.reshape(found.shape), "found": found}

  def matching(trained, rows, batch):
    del trained
    logits = rows["logits"]
    same = jnp.broadcast_to(jnp.array([[True, False, False]]), logits.shape)
    valid = batch.mask[:, None] & (rows["found"] > 0)
    total, accuracy = losses.matching(logits, same, valid)
    return total, {"accuracy": accuracy}

  init = functools.partial(build.init_slow, cfg, vocabulary)
  if cfg.slow.loss == "matching":
    return types.Task(init, matched, matching, _by_row)
  return types.Task(init, captioned, captioning, _by_row, loss_is_linear=True)


def distill(
  cfg: config.Config, vocabulary: int, mesh: Mesh | None = None
) -> types.Task:
  """Contrastive on captioned pairs, plus Slow's opinion on clusters.

  frozen = {"slow": parameters, "gamma": [], "tau": []}. Online, the teacher
  judges every caption of a cluster against every visual of it in this same
  step; offline, the batch brings what it said, and "slow" is not needed.
  """
  student = build.fast_model(cfg, vocabulary)
  size = cfg.distill.cluster_size
  teacher = judge(cfg, vocabulary)

  def taught(frozen, batch):
    """u / tau as [clusters * captions, visuals]."""
    h = batch.judged
    if cfg.distill.teacher == "online":
      h = teacher(frozen["slow"], batch.clusters)
    n = slow_models.targets_of(jnp.asarray(batch.clusters.text))
    u = fusion.per_target(h, n, frozen["gamma"])
    return jax.lax.stop_gradient(u / frozen["tau"])

  def rows(trained, frozen, batch, key):
    pairs = _embedded(cfg, student, trained["fast"], batch.pairs, key)
    again = jax.random.fold_in(key, 1)
    listed = _embedded(cfg, student, trained["fast"], batch.clusters, again)
    taught_rows = {"taught": taught(frozen, batch)}
    return {"pairs": pairs, "clusters": listed | taught_rows}

  def loss(trained, rows, batch):
    contrast, metrics = _contrastive(
      cfg, student, trained["fast"], rows["pairs"], batch.pairs, mesh
    )
    of_lists = rows["clusters"]
    visual = of_lists["visual"].reshape(-1, size, cfg.fast.embed)
    text = of_lists["text"].reshape(-1, size, cfg.fast.embed)
    scale = build.apply(student, trained["fast"], method="scale")
    learned = scale * jnp.einsum("ctd,cvd->ctv", text, visual)
    mask = batch.clusters.mask.reshape(-1, 1, size)
    mask &= jnp.ones((1, size, 1), bool)
    taught = of_lists["taught"].reshape(-1, size, size)
    teach, entropy = losses.distillation(taught, learned, mask)
    total = contrast + cfg.distill.alpha * teach
    metrics |= {
      "contrastive": contrast,
      "distillation": teach,
      "teacher_entropy": entropy,
    }
    return total, metrics

  def groups(batch) -> Any:
    pairs, _ = _by_row(batch.pairs)
    lists = batch.clusters.mask.shape[0] // size  # whole ones stay together
    both = types.DistillBatch(pairs, lists, lists)  # type: ignore[arg-type]
    return both, {"pairs": pairs, "clusters": lists}

  init = functools.partial(build.init_fast, cfg, vocabulary)
  return types.Task(init, rows, loss, groups)


def frozen_shapes(cfg: config.Config, vocabulary: int) -> types.Params:
  """Shapes of what the loss of cfg.stage reads and nobody trains."""
  number = jax.ShapeDtypeStruct((), jnp.float32)

  def teacher(init: Callable[..., types.Params]) -> types.Params:
    of_key = functools.partial(init, cfg, vocabulary)
    return jax.eval_shape(of_key, jax.random.key(0))

  if cfg.stage == "distill":
    judges = teacher(build.init_slow) if cfg.distill.teacher == "online" else {}
    return judges | {"gamma": number, "tau": number}
  if cfg.stage == "slow" and cfg.slow is not None:
    return teacher(build.init_fast) if cfg.slow.loss == "matching" else {}
  return {}


def batch_shapes(cfg: config.Config) -> types.Batch | types.DistillBatch:
  """Shapes of a global batch of cfg.stage."""
  of: Any = jax.ShapeDtypeStruct

  def rows(count: int, captions: int) -> types.Batch:
    size = cfg.data.image_size
    return types.Batch(
      visual=of((count, cfg.data.frames, size, size, 3), jnp.uint8),
      text=of((count * captions, cfg.tokens.length), jnp.int32),
      visual_id=of((count,), jnp.int32),
      text_id=of((count * captions,), jnp.int32),
      mask=of((count,), bool),
    )

  pairs = rows(cfg.train.batch_size, cfg.data.captions_per_visual)
  if cfg.stage != "distill":
    return pairs
  judged = cfg.distill.clusters * cfg.distill.cluster_size
  said = None
  if cfg.distill.teacher == "offline":
    said = of((judged, cfg.distill.cluster_size), jnp.float32)
  return types.DistillBatch(pairs, rows(judged, 1), said)


def judge(
  cfg: config.Config, vocabulary: int
) -> Callable[[types.Params, types.Batch], jax.Array]:
  """What a teacher does: (Slow's parameters, whole clusters) -> h [B,G].

  Row r is caption r of the batch against the G = `distill.cluster_size` visuals
  of its cluster, nats.
  """
  model, size = build.slow_model(cfg, vocabulary), cfg.distill.cluster_size

  def score(params: types.Params, batch: types.Batch) -> jax.Array:
    seen = build.pixels(cfg, batch.visual)
    memory = build.apply(model, params, seen, method="encode_visual")
    text = batch.text.reshape(-1, size, batch.text.shape[-1])
    states = build.apply(model, params, batch.text, method="read")
    states = states.reshape(-1, size, *states.shape[1:])
    # Each of a cluster's visuals sees all of its captions.
    states = jnp.repeat(states, size, axis=0)
    each = jnp.repeat(text, size, axis=0)
    h = build.apply(model, params, memory, states, each, method="score")
    return h.reshape(-1, size, size).transpose(0, 2, 1).reshape(-1, size)

  return score


def _embedded(cfg, model, params, batch: types.Batch, key):
  """Unit vectors of a batch: {"visual" [B,E], "text" [R,E]}."""
  out = build.apply(
    model,
    params,
    build.pixels(cfg, batch.visual),
    batch.text,
    True,
    rngs={"dropout": key},
  )
  return {"visual": out["visual"], "text": out["text"]}


def _contrastive(cfg, model, params, rows, batch: types.Batch, mesh):
  ids = [jnp.asarray(x) for x in (batch.visual_id, batch.text_id, batch.mask)]
  visual, text = rows["visual"], rows["text"]
  scale = build.apply(model, params, method="scale")
  chunk = cfg.fast.chunk
  if cfg.fast.loss == "sigmoid":
    bias = params["bias"]
    if chunk:
      total, metrics = ring.sigmoid(
        visual, text, scale, bias, *ids, mesh=mesh, chunk=chunk
      )
    else:
      total, metrics = losses.sigmoid(visual, text, scale, bias, *ids)
  elif chunk:
    total, metrics = ring.info_nce(
      visual, text, scale, *ids, mesh=mesh, chunk=chunk
    )
  else:
    total, metrics = losses.info_nce(visual, text, scale, *ids)
  return total, metrics | {"scale": scale}


def _by_row(batch: types.Batch) -> tuple[int, int]:
  rows = batch.mask.shape[0]
  return rows, rows


def _hard_negatives(cfg, vocabulary, params, batch: types.Batch, key):
  """Rows of other pairs that look right: (texts [B], visuals [B], found [B,3]).

  `found` is 1 where a pair of the three (own, hard text, hard visual) is one: a
  row without any other that it may be told apart from draws nothing.
  """
  model = build.fast_model(cfg, vocabulary)
  captions = batch.captions_per_visual
  out = build.apply(
    model, params, build.pixels(cfg, batch.visual), batch.text[::captions]
  )
  logits = out["scale"] * out["visual"] @ out["text"].T
  text_id = jnp.asarray(batch.text_id[::captions])
  other = losses.comparable(jnp.asarray(batch.visual_id), text_id)
  other &= ~jnp.eye(logits.shape[0], dtype=bool) & batch.mask[None]
  # `comparable` is symmetric, and so `other` is also one of texts and visuals.
  for_text = jax.random.fold_in(key, 1)
  texts = jax.random.categorical(
    key, jnp.where(other, logits, losses.EXCLUDED), axis=1
  )
  visuals = jax.random.categorical(
    for_text, jnp.where(other, logits.T, losses.EXCLUDED), axis=1
  )
  any_other = other.any(axis=1)
  found = jnp.stack([jnp.ones_like(any_other), any_other, any_other], axis=1)
  return texts, visuals, found.astype(jnp.float32)
