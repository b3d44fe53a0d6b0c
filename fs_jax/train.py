"""A stage from its config: data, vocabulary, first parameters, teacher, loop.

What a stage starts from lies in other stages of the same workdir, so that
`fast`, `slow` and `distill` are three calls of one function.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from fs_jax import (
  calibrate,
  config,
  contract,
  encode,
  exact,
  lineage,
  loop,
  metrics,
  mine,
  paths,
  processes,
  provenance,
  rerank,
  runs,
  sharding,
  store,
  tasks,
  types,
  validation,
)
from fs_jax.data import pipeline, sources
from fs_jax.data import tokenizer as tokenizers


def train(cfg: config.Config, workdir: epath.PathLike) -> epath.Path:
  """Trains the stage of `cfg`, or what is left of it; returns its folder.

  Raises:
    ValueError: data, config or earlier stages that do not fit.
    report.NonFinite: the loss diverged.
  """
  where = runs.folder(workdir, cfg.folder)
  source = sources.open_split(cfg.data, cfg.data.train, train=True)
  donor = _earlier(workdir, cfg.init.stage)
  teacher = _earlier(workdir, cfg.init.teacher)
  made_from = lineage.check(cfg, donor, teacher)
  tokenizer = _tokenizer(cfg, source, donor or teacher)
  if cfg.stage == "distill":
    # Says what is wrong before anything is fitted or mined.
    loop.program(cfg, tokenizer.vocab_size, sharding.mesh(cfg.mesh))
  first = _first_params(cfg, donor)
  fit = _teacher_fit(cfg, workdir, teacher)
  frozen = None if teacher is None else teacher.params
  if teacher is not None and fit is not None:
    trust = {"gamma": fit.gamma, "tau": cfg.distill.temperature or fit.tau}
    made_from["weights"] = trust
    # An offline teacher has said all.
    frozen = teacher.params if cfg.distill.teacher == "online" else {}
    frozen |= {name: np.float32(x) for name, x in trust.items()}
  runs.begin(where, cfg, tokenizer, made_from)
  clusters = None
  if cfg.stage == "distill":
    with processes.first("clusters"):
      clusters = _clusters(cfg, donor, source, where)
      if teacher is not None and cfg.distill.teacher == "offline":
        clusters = mine.judged(teacher, source, clusters, cfg, where)
    if teacher is not None:
      _listen(cfg, teacher, source, clusters, **trust)

  def batches(start: int, rows: tuple[slice, ...]):
    return pipeline.train_batches(
      source, tokenizer, cfg, start=start, rows=rows, clusters=clusters
    )

  # Earlier stages lie on one device, beside which training has other plans.
  frozen, first = jax.device_get((frozen, first))
  del donor, teacher
  loop.fit(
    cfg,
    workdir,
    tokenizer,
    batches,
    frozen=frozen,
    start_from=first,
    validate=quick_recall(cfg, tokenizer) if cfg.train.eval_every else None,
  )
  return where


def quick_recall(
  cfg: config.Config, tokenizer: tokenizers.Tokenizer
) -> Callable[[types.Params], Mapping[str, float]]:
  """R@1 and R@5 on the first `train.eval_sample` validation visuals.

  One caption each, ranked among the sample only: a curve to watch, not a
  result. Slow scores all pairs of a quarter of them. The sample is decoded once
  and scored in blocks that fit where training does (`validation.py`).
  """
  source = sources.open_lazily(cfg.data, cfg.data.validation)
  on = sharding.mesh(cfg.mesh)
  size = min(validation.sample_size(cfg), len(source))
  if cfg.stage == "slow":  # a quarter, also of fewer visuals than are asked for
    size = min(size, max(len(source) // 4, 1))
  made = validation.program(cfg, tokenizer.vocab_size, on, size)
  texts = tokenizer.encode([source.captions(i)[0] for i in range(size)])
  visual = source.visuals(np.arange(size))

  def recall(params: types.Params) -> dict[str, float]:
    scores = validation.scores(made, params, visual, texts)
    ranked = metrics.ranks_full(scores, np.arange(size)[:, None])
    return {
      f"R@{k}": float(metrics.recall_at(ranked, k).mean()) for k in (1, 5)
    }

  return recall


def weigh(workdir: epath.PathLike, fast_name: str, slow_name: str) -> None:
  """Fits how Slow and a Fast weigh together, unless it is done.

  The fit lies in the stage trained last, <slow>/fit.json for the Fast that Slow
  began with and <distilled>/fit.json for the distilled one. A fit of other
  models, or by other settings, is made anew.

  Of several processes the first one does it, and the others wait: those that
  left would take the whole run with them minutes later.

  Args:
    workdir: of both stages.
    fast_name: stage whose candidates Slow will look at.
    slow_name: the judge.
  """
  with processes.first("weigh"):
    if processes.is_first():
      fast = runs.load(runs.folder(workdir, fast_name))
      slow = runs.load(runs.folder(workdir, slow_name))
      _weigh(fast, slow)


def weigh_all(workdir: epath.PathLike) -> list[str]:
  """`weigh` of Slow and every Fast of a workdir; names of the Fasts.

  Raises:
    ValueError: no Slow, or no Fast, is trained.
  """
  names = [
    name
    for name in ("fast", "distill")
    if runs.finished(runs.folder(workdir, name))
  ]
  if not names or not runs.finished(runs.folder(workdir, "slow")):
    raise ValueError(
      f"{workdir}: must hold a trained slow, and fast or distill; got "
      f"{', '.join(names) or 'no Fast'}. train what is missing: python -m "
      "launch.train"
    )
  for name in names:
    weigh(workdir, name, "slow")
  return names


def weights_needed(
  fast: runs.Run, slow: runs.Run
) -> tuple[bool, provenance.Contract]:
  """Whether `weigh` has to fit, and what its weights follow from."""
  source = sources.open_lazily(fast.cfg.data, fast.cfg.data.validation)
  last = _last(fast, slow)
  made_from = {
    **slow.contract,
    **encode.contracts_of(fast, source),
    "captions": contract.captions(source.all_captions),
    "weights": {"candidates": last.cfg.weights.candidates},
  }
  known = provenance.record(last.folder / runs.FIT, runs.FIT_KIND, made_from)
  return known is None, made_from


def _last(fast: runs.Run, slow: runs.Run) -> runs.Run:
  """The stage that was trained last, which holds the weights of both."""
  return slow if fast.cfg.stage == "fast" else fast


def _weigh(fast: runs.Run, slow: runs.Run) -> None:
  needed, made_from = weights_needed(fast, slow)
  if not needed:
    return
  last = _last(fast, slow)
  source = sources.open_split(fast.cfg.data, fast.cfg.data.validation)
  memories = encode.write_store(
    slow, source, slow.folder / "validation", stale="remake"
  )
  fit = _fit(fast, slow, memories, source, last.cfg.weights.candidates)
  runs.save_fit(last.folder, fit, made_from)


def _fit(
  fast: runs.Run,
  slow: runs.Run,
  memories: store.Store,
  source: sources.Source,
  candidates: int,
) -> calibrate.Fit:
  """gamma, beta and tau from all validation captions."""
  vectors = encode.visual_vectors(fast, source)
  text, owner = pipeline.caption_table(source, fast.tokenizer)
  queries = encode.text_vectors(fast, text)
  rows, dots = exact.nearest(vectors, queries, min(candidates, len(vectors)))
  rows = np.asarray(rows)
  scorer = rerank.Scorer(slow, memories)
  scale = float(np.exp(np.asarray(fast.params["fast"]["log_scale"])))
  return calibrate.fit(
    scorer(text, rows),
    rerank.targets(text),
    np.asarray(dots),
    min(scale, 100.0),
    rows == owner[:, None],
    np.ones(rows.shape, bool),
  )


def _teacher_fit(
  cfg: config.Config, workdir: epath.PathLike, teacher: runs.Run | None
) -> calibrate.Fit | None:
  """What was fitted for the teacher's own scores, for these parameters.

  With the Fast that it began with; weights that are missing, or were made from
  anything else, are fitted here. Where that Fast is gone, the weights are held
  to be right if they are of this teacher: gamma and tau are Slow's alone.
  """
  if teacher is None or cfg.stage != "distill":
    return None
  began = teacher.cfg.init.stage or cfg.init.stage
  if runs.finished(runs.folder(workdir, began)):
    weigh(workdir, began, teacher.cfg.folder)
  return runs.load_fit(teacher.folder, teacher.contract)


def _listen(
  cfg: config.Config,
  teacher: runs.Run,
  source: sources.Source,
  clusters: pipeline.Clusters,
  *,
  gamma: float,
  tau: float,
) -> None:
  """Tells how much the teacher says of its lists, before the first step."""
  if not processes.is_first():
    return
  if clusters.judged is not None:
    h = clusters.judged.reshape(-1, clusters.judged.shape[-1])
    text = pipeline.cluster_texts(source, teacher.tokenizer, cfg, clusters)
    text = text.reshape(-1, text.shape[-1])
  else:  # what the first step will hear
    judge = jax.jit(tasks.judge(cfg, teacher.tokenizer.vocab_size))
    batches = pipeline.train_batches(
      source, teacher.tokenizer, cfg, start=0, clusters=clusters
    )
    heard: Any = next(batches)
    h = np.asarray(judge(teacher.params["slow"], heard.clusters))
    text = np.asarray(heard.clusters.text)
  lineage.check_entropy(cfg, h, rerank.targets(text), gamma, tau)


def _earlier(workdir: epath.PathLike, stage: str) -> runs.Run | None:
  """A stage of this workdir, if one is named."""
  return runs.load(runs.folder(workdir, stage)) if stage else None


def _clusters(
  cfg: config.Config,
  fast: runs.Run | None,
  captioned: sources.Source,
  where: epath.Path,
) -> pipeline.Clusters:
  """What the teacher looks at: visuals that `fast` confuses."""
  more = None
  if cfg.data.uncaptioned:
    more = sources.open_split(cfg.data, cfg.data.uncaptioned, train=True)
  return mine.clusters(fast, captioned, more, cfg, where)


def _tokenizer(
  cfg: config.Config, source: sources.Source, earlier: runs.Run | None
) -> tokenizers.Tokenizer:
  """The earlier stage's vocabulary, or a new one of the training captions."""
  if earlier is not None:
    return earlier.tokenizer
  captions = (c for i in range(len(source)) for c in source.captions(i))
  return tokenizers.make(captions, cfg.tokens)


def _first_params(
  cfg: config.Config, donor: runs.Run | None
) -> types.Params | None:
  """The donor's parameters under our names, by `init.prefixes`."""
  if donor is None:
    return None
  pairs = cfg.init.prefixes or (("", ""),)
  given: dict[str, jax.Array] = {}
  for theirs, ours in pairs:
    found = False
    for name, leaf in zip(
      paths.names(donor.params), jax.tree.leaves(donor.params), strict=True
    ):
      if name.startswith(theirs):
        given[ours + name[len(theirs) :]] = leaf
        found = True
    if not found:
      raise ValueError(
        f"init.prefixes: must begin names of stage {cfg.init.stage!r}; got "
        f"{theirs!r}. its names look like {paths.names(donor.params)[0]!r}"
      )
  return functools.reduce(
    paths.merge, (_nested(name, leaf) for name, leaf in given.items()), {}
  )


def _nested(name: str, leaf: jax.Array) -> dict:
  head, _, rest = name.partition("/")
  return {head: _nested(rest, leaf) if rest else leaf}
