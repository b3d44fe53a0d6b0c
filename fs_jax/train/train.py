"""A stage from its config: data, vocabulary, first parameters, teacher, loop.

A stage starts from other stages of the same workdir: `prepare` makes one value
of all that, and `train` runs the loop on it. `fast`, `slow` and `distill` are
three calls of one function.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from fs_jax import config, trees, types
from fs_jax.data import pipeline, sources
from fs_jax.data import tokenizer as tokenizers
from fs_jax.machine import compile_cache, files, processes, sharding
from fs_jax.runs import card, journal, layout, stages
from fs_jax.search import fusion, rerank, weigh
from fs_jax.train import clusters as clustering
from fs_jax.train import lineage, loop, step, tasks

MakeValidate = Callable[[config.Config, tokenizers.Tokenizer], loop.Validate]


class Start(NamedTuple):
  """What a stage starts from: all that its first step needs, on the host."""

  source: sources.Source  # the training split
  tokenizer: tokenizers.Tokenizer
  first: types.Params | None  # of an earlier stage, under this one's names
  frozen: types.Params  # a teacher's; {} where the loss reads none
  clusters: pipeline.Clusters | None  # that a teacher judges


def train(
  cfg: config.Config,
  workdir: epath.PathLike,
  make_validate: MakeValidate | None = None,
) -> epath.Path:
  """Trains the stage of `cfg`, or what is left of it; returns its folder.

  Args:
    cfg: the stage's config.
    workdir: its folder lies here, and those of the stages it starts from.
    make_validate: makes the function that is called every `train.eval_every`
      steps; needed where that is not 0, since training does not know how it is
      judged.

  Raises:
    ValueError: data, config or earlier stages that do not fit.
    errors.NonFinite: the loss diverged.
  """
  validates = cfg.train.eval_every > 0
  if validates and make_validate is None:
    raise ValueError(
      f"train.eval_every: must be 0 where nothing validates; got "
      f"{cfg.train.eval_every}. pass make_validate=validation.quick_recall"
    )
  start = prepare(cfg, workdir)
  validate = None
  if make_validate is not None and validates:
    validate = make_validate(cfg, start.tokenizer)

  def batches(first: int, rows: tuple[slice, ...]) -> Iterator[types.AnyBatch]:
    return pipeline.train_batches(
      start.source,
      start.tokenizer,
      cfg,
      start=first,
      rows=rows,
      clusters=start.clusters,
    )

  loop.fit(
    cfg,
    workdir,
    start.tokenizer,
    batches,
    frozen=start.frozen,
    start_from=start.first,
    validate=validate,
  )
  folder = layout.stage(workdir, cfg.folder)
  if processes.is_first() and not (folder / layout.CARD).exists():
    _write_card(folder, start.source)
  return folder


def prepare(cfg: config.Config, workdir: epath.PathLike) -> Start:
  """Opens, checks and makes what the stage of `cfg` starts from.

  Begins the stage's folder: mined clusters and their scores are kept in it.

  Args:
    cfg: the stage's config.
    workdir: its folder lies here, and those of the stages it starts from.

  Raises:
    ValueError: data, config or earlier stages that do not fit.
  """
  folder = layout.stage(workdir, cfg.folder)
  source = sources.open_split(cfg.data, cfg.data.train, train=True)
  donor = _load_earlier(workdir, cfg.init.stage)
  teacher = _load_earlier(workdir, cfg.init.teacher)
  made_from = lineage.check(cfg, donor, teacher)
  tokenizer = _tokenizer(cfg, source, donor or teacher)
  if cfg.stage == "distill":
    # Refuses what does not fit the mesh before anything is weighed or mined.
    step.program(cfg, tokenizer.vocab_size, sharding.mesh(cfg.mesh))
  first = _first_params(cfg, donor)
  frozen = {} if teacher is None else teacher.params
  weights = _teacher_weights(cfg, workdir, teacher)
  if weights:
    made_from["weights"] = weights
    # An offline teacher has judged all clusters before the first step.
    judge = frozen if cfg.distill.teacher == "online" else {}
    frozen = judge | {name: np.float32(x) for name, x in weights.items()}
  stages.begin(folder, cfg, tokenizer, made_from)
  clusters = None
  if cfg.stage == "distill":
    with processes.first_then_others("clusters"):
      clusters = _mine(cfg, donor, source, folder)
      if teacher is not None and cfg.distill.teacher == "offline":
        clusters = clustering.judge(teacher, source, clusters, cfg, folder)
    if teacher is not None and processes.is_first():
      _report_entropy(cfg, teacher, source, clusters, **weights)
  # Earlier stages lie on one device, beside which training has other plans.
  first, frozen = jax.device_get((first, frozen))
  return Start(source, tokenizer, first, frozen, clusters)


def _write_card(folder: epath.Path, source: sources.Source) -> None:
  """Writes MODEL_CARD.md of a stage that is done."""
  run = stages.load(folder)
  text = card.render(
    run.cfg,
    step=run.step,
    parameters=sum(x.size for x in jax.tree.leaves(run.params)),
    examples=len(source),
    attribution=source.attribution,
    lines=journal.read(folder),
    contract=run.contract,
    versions=compile_cache.versions(),
  )
  files.write_text(folder / layout.CARD, text)


def _teacher_weights(
  cfg: config.Config, workdir: epath.PathLike, teacher: stages.Run | None
) -> dict[str, float]:
  """gamma and tau of the teacher's scores; {} where nothing is distilled.

  They are fitted with the Fast that the teacher began with; weights that are
  missing, or were made from anything else, are fitted here. Where that Fast is
  gone, the weights are held to be right if they are of this teacher: gamma and
  tau are Slow's alone.
  """
  if teacher is None or cfg.stage != "distill":
    return {}
  fast = teacher.cfg.init.stage or cfg.init.stage
  if stages.is_finished(layout.stage(workdir, fast)):
    weigh.weigh(workdir, fast, teacher.cfg.folder)
  weights = fusion.load(teacher.folder, teacher.contract)
  tau = cfg.distill.temperature or weights.tau
  return {"gamma": weights.gamma, "tau": tau}


def _report_entropy(
  cfg: config.Config,
  teacher: stages.Run,
  source: sources.Source,
  clusters: pipeline.Clusters,
  *,
  gamma: float,
  tau: float,
) -> None:
  """Tells how sure the teacher is of its lists, before the first step."""
  if clusters.judged is not None:
    h = clusters.judged.reshape(-1, clusters.judged.shape[-1])
    text = pipeline.cluster_texts(source, teacher.tokenizer, cfg, clusters)
    text = text.reshape(-1, text.shape[-1])
  else:  # the clusters of the first step
    judge = jax.jit(tasks.judge(cfg, teacher.tokenizer.vocab_size))
    batches = pipeline.train_batches(
      source, teacher.tokenizer, cfg, start=0, clusters=clusters
    )
    batch: Any = next(batches)
    h = np.asarray(judge(teacher.params["slow"], batch.clusters))
    text = np.asarray(batch.clusters.text)
  lineage.check_entropy(cfg, h, rerank.count_targets(text), gamma, tau)


def _load_earlier(workdir: epath.PathLike, stage: str) -> stages.Run | None:
  """A stage of this workdir, if one is named."""
  return stages.load(layout.stage(workdir, stage)) if stage else None


def _mine(
  cfg: config.Config,
  fast: stages.Run | None,
  captioned: sources.Source,
  folder: epath.Path,
) -> pipeline.Clusters:
  """Clusters for the teacher: visuals that `fast` confuses."""
  more = None
  if cfg.data.uncaptioned:
    more = sources.open_split(cfg.data, cfg.data.uncaptioned, train=True)
  return clustering.mine(fast, captioned, more, cfg, folder)


def _tokenizer(
  cfg: config.Config, source: sources.Source, earlier: stages.Run | None
) -> tokenizers.Tokenizer:
  """The earlier stage's vocabulary, or a new one of the training captions."""
  if earlier is not None:
    return earlier.tokenizer
  captions = (c for i in range(len(source)) for c in source.captions(i))
  return tokenizers.make(captions, cfg.tokens)


def _first_params(
  cfg: config.Config, donor: stages.Run | None
) -> types.Params | None:
  """The donor's parameters under our names, by `init.prefixes`."""
  if donor is None:
    return None
  names = trees.names(donor.params)
  leaves = dict(zip(names, jax.tree.leaves(donor.params), strict=True))
  given: dict[str, jax.Array] = {}
  for theirs, ours in cfg.init.prefixes or (("", ""),):
    taken = {
      ours + name.removeprefix(theirs): leaf
      for name, leaf in leaves.items()
      if name.startswith(theirs)
    }
    given |= taken
    if not taken:
      raise ValueError(
        f"init.prefixes: must begin names of stage {cfg.init.stage!r}; got "
        f"{theirs!r}. its names look like {names[0]!r}"
      )
  return functools.reduce(
    trees.merge, (trees.nest(name, leaf) for name, leaf in given.items()), {}
  )
