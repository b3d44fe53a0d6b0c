"""A stage from its config: data, vocabulary, first parameters, teacher, loop.

What a stage starts from lies in other stages of the same workdir, so that
`fast`, `slow` and `distill` are three calls of one function.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
from etils import epath

from fs_jax import (
  calibrate,
  config,
  encode,
  exact,
  loop,
  metrics,
  mine,
  paths,
  processes,
  rerank,
  runs,
  sharding,
  store,
  types,
  validation,
)
from fs_jax.data import pipeline, sources
from fs_jax.data import tokenizer as tokenizers

FIT_K = 20  # Fast's candidates of each validation query that weights are fit on


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
  tokenizer = _tokenizer(cfg, source, donor or teacher)
  frozen = None if teacher is None else _frozen(cfg, teacher)
  clusters = None
  if cfg.stage == "distill":
    # Says what is wrong before anything is mined.
    loop.program(cfg, tokenizer.vocab_size, sharding.mesh(cfg.mesh))
    runs.begin(where, cfg, tokenizer)
    with processes.first("clusters"):
      clusters = _clusters(cfg, donor, source, where)
      if teacher is not None and cfg.distill.teacher == "offline":
        clusters = mine.judged(teacher, source, clusters, cfg, where)

  def batches(start: int, rows: tuple[slice, ...]):
    return pipeline.train_batches(
      source, tokenizer, cfg, start=start, rows=rows, clusters=clusters
    )

  # Earlier stages lie on one device, beside which training has other plans.
  frozen, first = jax.device_get((frozen, _first_params(cfg, donor)))
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
  source = sources.open_split(cfg.data, cfg.data.validation)
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
  began with and <distilled>/fit.json for the distilled one.

  Of several processes the first one does it, and the others wait: those that
  left would take the whole run with them minutes later.

  Args:
    workdir: of both stages.
    fast_name: stage whose candidates Slow will look at.
    slow_name: the judge.
  """
  with processes.first("weigh"):
    if processes.is_first():
      _weigh(workdir, fast_name, slow_name)


def _weigh(workdir: epath.PathLike, fast_name: str, slow_name: str) -> None:
  fast = runs.load(runs.folder(workdir, fast_name))
  slow = runs.load(runs.folder(workdir, slow_name))
  where = slow.folder if fast.cfg.stage == "fast" else fast.folder
  parts = {"fast": fast.fast_contract, "slow": slow.slow_contract()}
  if (where / runs.FIT).exists():
    runs.load_fit(where, parts)
    return
  source = sources.open_split(fast.cfg.data, fast.cfg.data.validation)
  memories = encode.write_store(slow, source, slow.folder / "validation")
  runs.save_fit(where, _fit(fast, slow, memories, source), parts)


def _fit(
  fast: runs.Run, slow: runs.Run, memories: store.Store, source: sources.Source
) -> calibrate.Fit:
  """gamma, beta and tau from all validation captions."""
  vectors = encode.visual_vectors(fast, source)
  text, owner = pipeline.caption_table(source, fast.tokenizer)
  queries = encode.text_vectors(fast, text)
  rows, dots = exact.nearest(vectors, queries, min(FIT_K, len(vectors)))
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


def _earlier(workdir: epath.PathLike, stage: str) -> runs.Run | None:
  """A stage of this workdir, if one is named."""
  return runs.load(runs.folder(workdir, stage)) if stage else None


def _frozen(cfg: config.Config, teacher: runs.Run) -> types.Params:
  """The teacher's parameters, and how far to trust its scores."""
  if cfg.stage != "distill":
    return teacher.params
  fit = runs.load_fit(teacher.folder)
  tau = cfg.distill.temperature or fit.tau
  # An offline teacher has said all.
  frozen = teacher.params if cfg.distill.teacher == "online" else {}
  return frozen | {"gamma": np.float32(fit.gamma), "tau": np.float32(tau)}


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
