"""A stage from its config: data, vocabulary, first parameters, teacher, loop.

What a stage starts from lies in other stages of the same workdir, so that
`fast`, `slow` and `distill` are three calls of one function.
"""

import functools
from collections.abc import Callable
from typing import Any

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


def train(
  cfg: config.Config,
  workdir: epath.PathLike,
  make_validate: MakeValidate | None = None,
) -> epath.Path:
  """Trains the stage of `cfg`, or what is left of it; returns its folder.

  Args:
    cfg: of the stage.
    workdir: of it, and of the stages that it starts from.
    make_validate: makes what is called every `train.eval_every` steps; needed
      where that is not 0, since training does not know how it is judged.

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
  where = layout.stage(workdir, cfg.folder)
  source = sources.open_split(cfg.data, cfg.data.train, train=True)
  donor = _earlier(workdir, cfg.init.stage)
  teacher = _earlier(workdir, cfg.init.teacher)
  made_from = lineage.check(cfg, donor, teacher)
  tokenizer = _tokenizer(cfg, source, donor or teacher)
  if cfg.stage == "distill":
    # Says what is wrong before anything is fitted or mined.
    step.program(cfg, tokenizer.vocab_size, sharding.mesh(cfg.mesh))
  first = _first_params(cfg, donor)
  fit = _teacher_fit(cfg, workdir, teacher)
  frozen = None if teacher is None else teacher.params
  if teacher is not None and fit is not None:
    trust = {"gamma": fit.gamma, "tau": cfg.distill.temperature or fit.tau}
    made_from["weights"] = trust
    # An offline teacher has said all.
    frozen = teacher.params if cfg.distill.teacher == "online" else {}
    frozen |= {name: np.float32(x) for name, x in trust.items()}
  stages.begin(where, cfg, tokenizer, made_from)
  clusters = None
  if cfg.stage == "distill":
    with processes.first_then_others("clusters"):
      clusters = _clusters(cfg, donor, source, where)
      if teacher is not None and cfg.distill.teacher == "offline":
        clusters = clustering.judge(teacher, source, clusters, cfg, where)
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
    validate=(
      make_validate(cfg, tokenizer) if make_validate and validates else None
    ),
  )
  if processes.is_first() and not (where / layout.CARD).exists():
    _write_card(where, source)
  return where


def _write_card(where: epath.Path, source: sources.Source) -> None:
  """MODEL_CARD.md of a stage that is done."""
  run = stages.load(where)
  text = card.render(
    run.cfg,
    step=run.step,
    parameters=sum(x.size for x in jax.tree.leaves(run.params)),
    examples=len(source),
    attribution=source.attribution,
    lines=journal.read(where),
    contract=run.contract,
    versions=compile_cache.versions(),
  )
  files.write_text(where / layout.CARD, text)


def _teacher_fit(
  cfg: config.Config, workdir: epath.PathLike, teacher: stages.Run | None
) -> fusion.Weights | None:
  """What was fitted for the teacher's own scores, for these parameters.

  With the Fast that it began with; weights that are missing, or were made from
  anything else, are fitted here. Where that Fast is gone, the weights are held
  to be right if they are of this teacher: gamma and tau are Slow's alone.
  """
  if teacher is None or cfg.stage != "distill":
    return None
  began = teacher.cfg.init.stage or cfg.init.stage
  if stages.is_finished(layout.stage(workdir, began)):
    weigh.weigh(workdir, began, teacher.cfg.folder)
  return fusion.load(teacher.folder, teacher.contract)


def _listen(
  cfg: config.Config,
  teacher: stages.Run,
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
  lineage.check_entropy(cfg, h, rerank.count_targets(text), gamma, tau)


def _earlier(workdir: epath.PathLike, stage: str) -> stages.Run | None:
  """A stage of this workdir, if one is named."""
  return stages.load(layout.stage(workdir, stage)) if stage else None


def _clusters(
  cfg: config.Config,
  fast: stages.Run | None,
  captioned: sources.Source,
  where: epath.Path,
) -> pipeline.Clusters:
  """What the teacher looks at: visuals that `fast` confuses."""
  more = None
  if cfg.data.uncaptioned:
    more = sources.open_split(cfg.data, cfg.data.uncaptioned, train=True)
  return clustering.mine(fast, captioned, more, cfg, where)


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
  pairs = cfg.init.prefixes or (("", ""),)
  given: dict[str, jax.Array] = {}
  for theirs, ours in pairs:
    found = False
    for name, leaf in zip(
      trees.names(donor.params), jax.tree.leaves(donor.params), strict=True
    ):
      if name.startswith(theirs):
        given[ours + name[len(theirs) :]] = leaf
        found = True
    if not found:
      raise ValueError(
        f"init.prefixes: must begin names of stage {cfg.init.stage!r}; got "
        f"{theirs!r}. its names look like {trees.names(donor.params)[0]!r}"
      )
  return functools.reduce(
    trees.merge, (trees.nest(name, leaf) for name, leaf in given.items()), {}
  )
