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
from jaxtyping import Float, Int

from fs_jax import config, types
from fs_jax.models import build
from fs_jax.models import slow as slow_models
from fs_jax.search import fusion
from fs_jax.train import losses, ring

Rows = dict[str, Any]  # a batch encoded: arrays, examples in front
Loss = tuple[Float[jax.Array, ""], types.Metrics]


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

  def encode(
    trained: types.Params,
    frozen: types.Params,
    batch: types.Batch,
    key: jax.Array,
  ) -> Rows:
    del frozen
    return _embed(cfg, vocabulary, trained["fast"], batch, key)

  def loss(trained: types.Params, rows: Rows, batch: types.Batch) -> Loss:
    return _contrast(cfg, vocabulary, trained["fast"], rows, batch, mesh)

  init = functools.partial(build.init_fast, cfg, vocabulary)
  return types.Task(init, encode, loss, _by_row)


def slow(cfg: config.Config, vocabulary: int) -> types.Task:
  """Captioning in both directions, or the matching baseline."""
  assert cfg.slow is not None
  make = {"captioning": captioning, "matching": matching}[cfg.slow.loss]
  return make(cfg, vocabulary)


def captioning(cfg: config.Config, vocabulary: int) -> types.Task:
  """Slow predicts every word of a caption; some rows see no picture."""
  assert cfg.slow is not None
  null_rate = cfg.slow.null_rate

  def encode(
    trained: types.Params,
    frozen: types.Params,
    batch: types.Batch,
    key: jax.Array,
  ) -> Rows:
    del frozen
    drop, blank = jax.random.split(key)
    model = build.bind_slow(cfg, vocabulary, trained["slow"], drop)
    memory = model.encode_visual(build.pixels(cfg, batch.visual), True)
    rows = batch.visual.shape[0]
    unseen = jax.random.uniform(blank, (rows,)) < null_rate
    memory = model.blank(memory, unseen)
    text, states = model.read_lists(jnp.asarray(batch.text), rows, True)
    words = model.word_log_likelihood(memory, states, text, True)
    return {"words": words, "unseen": unseen.astype(jnp.float32)}

  def loss(trained: types.Params, rows: Rows, batch: types.Batch) -> Loss:
    del trained
    words, unseen = rows["words"], rows["unseen"] > 0
    text = jnp.asarray(batch.text)
    n = slow_models.targets_of(text.reshape(*words.shape[:2], -1))
    mask = jnp.asarray(batch.mask)
    seen = losses.captioning(words, n, mask & ~unseen)
    alone = losses.captioning(words, n, mask & unseen)
    total = losses.captioning(words, n, mask)
    return total, {"nats_per_word": seen, "nats_per_word_unseen": alone}

  init = functools.partial(build.init_slow, cfg, vocabulary)
  return types.Task(init, encode, loss, _by_row, loss_is_linear=True)


def matching(cfg: config.Config, vocabulary: int) -> types.Task:
  """Slow tells a caption's own visual from a hard one: the baseline.

  It needs hard negatives, a text for each visual and a visual for each text:
  frozen["fast"] draws them among the rows that are on the devices at once, in
  proportion to the softmax of its own scores.
  """

  def encode(
    trained: types.Params,
    frozen: types.Params,
    batch: types.Batch,
    key: jax.Array,
  ) -> Rows:
    """Logits of (own, own), (own, hard text) and (hard visual, own)."""
    texts, visuals, is_pair = _draw_negatives(
      cfg, vocabulary, frozen["fast"], batch, key
    )
    model = build.bind_slow(cfg, vocabulary, trained["slow"], key)
    memory = model.encode_visual(build.pixels(cfg, batch.visual), True)
    # A drawn visual is one of the batch: it is not encoded again.
    memory = jax.tree.map(
      lambda x: jnp.stack([x, x, x[visuals]], axis=1).reshape(-1, *x.shape[1:]),
      memory,
    )
    first = batch.text[:: batch.captions_per_visual]
    flat = jnp.stack([first, first[texts]], axis=1).reshape(-1, first.shape[-1])
    states = model.read(flat, True)
    of_pair = jnp.array([0, 1, 0])  # the text of each of a row's three pairs
    text, states = (
      x.reshape(-1, 2, *x.shape[1:])[:, of_pair].reshape(-1, 1, *x.shape[1:])
      for x in (flat, states)
    )
    logits = model.match_logit(memory, states, text, True)
    return {"logits": logits.reshape(is_pair.shape), "is_pair": is_pair}

  def loss(trained: types.Params, rows: Rows, batch: types.Batch) -> Loss:
    del trained
    logits = rows["logits"]
    same = jnp.broadcast_to(jnp.array([[True, False, False]]), logits.shape)
    valid = batch.mask[:, None] & (rows["is_pair"] > 0)
    total, accuracy = losses.matching(logits, same, valid)
    return total, {"accuracy": accuracy}

  init = functools.partial(build.init_slow, cfg, vocabulary)
  return types.Task(init, encode, loss, _by_row)


def distill(
  cfg: config.Config, vocabulary: int, mesh: Mesh | None = None
) -> types.Task:
  """Contrastive on captioned pairs, plus Slow's opinion on clusters.

  frozen = {"slow": parameters, "gamma": [], "tau": []}. Online, the teacher
  judges every caption of a cluster against every visual of it in this same
  step; offline, the batch brings its scores, and "slow" is not needed.
  """
  size = cfg.distill.cluster_size
  teacher = judge(cfg, vocabulary)

  def teach(
    frozen: types.Params, batch: types.DistillBatch
  ) -> Float[jax.Array, "B G"]:
    """The teacher's logits u / tau of each caption over its cluster."""
    if cfg.distill.teacher == "online":
      h = teacher(frozen["slow"], batch.clusters)
    else:
      h = jnp.asarray(batch.judged)
    n = slow_models.targets_of(jnp.asarray(batch.clusters.text))
    u = fusion.per_target(h, n, frozen["gamma"])
    return jax.lax.stop_gradient(u / frozen["tau"])

  def encode(
    trained: types.Params,
    frozen: types.Params,
    batch: types.DistillBatch,
    key: jax.Array,
  ) -> dict[str, Rows]:
    params = trained["fast"]
    pairs = _embed(cfg, vocabulary, params, batch.pairs, key)
    again = jax.random.fold_in(key, 1)
    clusters = _embed(cfg, vocabulary, params, batch.clusters, again)
    return {
      "pairs": pairs,
      "clusters": clusters | {"teacher": teach(frozen, batch)},
    }

  def loss(
    trained: types.Params, rows: dict[str, Rows], batch: types.DistillBatch
  ) -> Loss:
    contrastive, metrics = _contrast(
      cfg, vocabulary, trained["fast"], rows["pairs"], batch.pairs, mesh
    )
    clusters = rows["clusters"]
    visual = clusters["visual"].reshape(-1, size, cfg.fast.embed)
    text = clusters["text"].reshape(-1, size, cfg.fast.embed)
    scale = build.bind_fast(cfg, vocabulary, trained["fast"]).scale()
    student = scale * jnp.einsum("ctd,cvd->ctv", text, visual)
    mask = jnp.asarray(batch.clusters.mask).reshape(-1, 1, size)
    mask &= jnp.ones((1, size, 1), bool)
    teacher = clusters["teacher"].reshape(-1, size, size)
    distillation, entropy = losses.distillation(teacher, student, mask)
    metrics |= {
      "contrastive": contrastive,
      "distillation": distillation,
      "teacher_entropy": entropy,
    }
    return contrastive + cfg.distill.alpha * distillation, metrics

  def split_limits(batch: types.DistillBatch) -> tuple[types.Tree, types.Tree]:
    pairs, _ = _by_row(batch.pairs)
    lists = batch.clusters.mask.shape[0] // size  # whole ones stay together
    both = types.DistillBatch(pairs, lists, lists)  # type: ignore[arg-type]
    return both, {"pairs": pairs, "clusters": lists}

  init = functools.partial(build.init_fast, cfg, vocabulary)
  return types.Task(init, encode, loss, split_limits)


def frozen_shapes(cfg: config.Config, vocabulary: int) -> types.Params:
  """Shapes of the parameters that the loss of cfg.stage reads untrained."""
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


def batch_shapes(cfg: config.Config) -> types.AnyBatch:
  """Shapes of a global batch of cfg.stage."""
  array: Any = jax.ShapeDtypeStruct  # stands for an array

  def rows(count: int, captions: int) -> types.Batch:
    size = cfg.data.image_size
    return types.Batch(
      visual=array((count, cfg.data.frames, size, size, 3), jnp.uint8),
      text=array((count * captions, cfg.tokens.length), jnp.int32),
      visual_id=array((count,), jnp.int32),
      text_id=array((count * captions,), jnp.int32),
      mask=array((count,), bool),
    )

  pairs = rows(cfg.train.batch_size, cfg.data.captions_per_visual)
  if cfg.stage != "distill":
    return pairs
  count = cfg.distill.clusters * cfg.distill.cluster_size
  judged = None
  if cfg.distill.teacher == "offline":
    judged = array((count, cfg.distill.cluster_size), jnp.float32)
  return types.DistillBatch(pairs, rows(count, 1), judged)


def judge(
  cfg: config.Config, vocabulary: int
) -> Callable[[types.Params, types.Batch], Float[jax.Array, "B G"]]:
  """The teacher's scores: (Slow's parameters, whole clusters) -> h [B,G].

  Row r is caption r of the batch against the G = `distill.cluster_size` visuals
  of its cluster, nats.
  """
  size = cfg.distill.cluster_size

  def score(
    params: types.Params, batch: types.Batch
  ) -> Float[jax.Array, "B G"]:
    model = build.bind_slow(cfg, vocabulary, params)
    memory = model.encode_visual(build.pixels(cfg, batch.visual))
    lists = batch.text.shape[0] // size
    text, states = model.read_lists(jnp.asarray(batch.text), lists)
    # Each of a cluster's visuals sees all of its captions.
    states = jnp.repeat(states, size, axis=0)
    each = jnp.repeat(text, size, axis=0)
    h = model.score(memory, states, each)
    return h.reshape(-1, size, size).transpose(0, 2, 1).reshape(-1, size)

  return score


def _embed(
  cfg: config.Config,
  vocabulary: int,
  params: types.Params,
  batch: types.Batch,
  key: jax.Array,
) -> Rows:
  """Unit vectors of a batch: {"visual" [B,E], "text" [R,E]}."""
  model = build.bind_fast(cfg, vocabulary, params, key)
  out = model(build.pixels(cfg, batch.visual), jnp.asarray(batch.text), True)
  return {"visual": out["visual"], "text": out["text"]}


def _contrast(
  cfg: config.Config,
  vocabulary: int,
  params: types.Params,
  rows: Rows,
  batch: types.Batch,
  mesh: Mesh | None,
) -> Loss:
  """The loss that `cfg.fast` names: all pairs at once, or in a ring."""
  ids = map(jnp.asarray, (batch.visual_id, batch.text_id, batch.mask))
  pairs = losses.Pairs(rows["visual"], rows["text"], *ids)
  scale = build.bind_fast(cfg, vocabulary, params).scale()
  chunk = cfg.fast.chunk
  if not chunk and cfg.fast.loss == "softmax":
    total, metrics = losses.info_nce(pairs, scale)
  elif not chunk:
    total, metrics = losses.sigmoid(pairs, scale, params["bias"])
  elif mesh is None:
    raise ValueError(
      f"fast.chunk: must be 0 where there is no mesh; got {chunk}. pass mesh="
    )
  elif cfg.fast.loss == "softmax":
    total, metrics = ring.info_nce(pairs, scale, mesh=mesh, chunk=chunk)
  else:
    bias = params["bias"]
    total, metrics = ring.sigmoid(pairs, scale, bias, mesh=mesh, chunk=chunk)
  return total, metrics | {"scale": scale}


def _by_row(batch: types.Batch) -> tuple[int, int]:
  rows = batch.mask.shape[0]
  return rows, rows


def _draw_negatives(
  cfg: config.Config,
  vocabulary: int,
  params: types.Params,
  batch: types.Batch,
  key: jax.Array,
) -> tuple[Int[jax.Array, "B"], Int[jax.Array, "B"], Float[jax.Array, "B 3"]]:
  """Rows of other pairs that look right: (texts, visuals, is_pair).

  `is_pair` is 1 where a pair of the three, (own, own), (own, hard text) and
  (hard visual, own), exists: a row without any other that it may be told apart
  from draws nothing.
  """
  model = build.bind_fast(cfg, vocabulary, params)
  captions = batch.captions_per_visual
  visual = build.pixels(cfg, batch.visual)
  out = model(visual, jnp.asarray(batch.text[::captions]))
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
  is_pair = jnp.stack([jnp.ones_like(any_other), any_other, any_other], axis=1)
  return texts, visuals, is_pair.astype(jnp.float32)
