"""Fits and stores the weights of Slow and a Fast.

The weights depend on the two stages, the validation split and the number of
candidates. Weights that were fitted on anything else are fitted again.
"""

import numpy as np
from etils import epath

from fs_jax.data import pipeline, sources
from fs_jax.gallery import encode, exact, memories
from fs_jax.machine import commands, processes, provenance
from fs_jax.models import fast as fast_models
from fs_jax.runs import contract, layout, stages
from fs_jax.search import fitting, fusion, rerank
from fs_jax.search import scorer as scorers


def weigh(workdir: epath.PathLike, fast_name: str, slow_name: str) -> None:
  """Fits the weights of Slow and a Fast, unless they are up to date.

  They are stored in the stage trained last: <slow>/fit.json for the Fast that
  Slow started from, <distilled>/fit.json for the distilled one. Weights of
  other models or settings are replaced.

  Of several processes the first one fits and the others wait: a process that
  left early would end the whole run minutes later.

  Args:
    workdir: the folder of both stages.
    fast_name: the stage whose candidates Slow re-ranks.
    slow_name: the stage that re-ranks them.
  """
  with processes.first_then_others("weigh"):
    if processes.is_first():
      fast = stages.load(layout.stage(workdir, fast_name))
      slow = stages.load(layout.stage(workdir, slow_name))
      _weigh(fast, slow)


def weigh_all(workdir: epath.PathLike) -> list[str]:
  """Weighs Slow with every Fast of a workdir; returns the Fasts' names.

  Raises:
    ValueError: no Slow, or no Fast, is trained.
  """
  names = [
    name
    for name in ("fast", "distill")
    if stages.is_finished(layout.stage(workdir, name))
  ]
  if not names or not stages.is_finished(layout.stage(workdir, "slow")):
    raise ValueError(
      f"{workdir}: must hold a trained slow, and fast or distill; got "
      f"{', '.join(names) or 'no Fast'}. train what is missing: "
      f"{commands.program('train')}"
    )
  for name in names:
    weigh(workdir, name, "slow")
  return names


def weights_needed(
  fast: stages.Run, slow: stages.Run
) -> tuple[bool, provenance.Contract]:
  """Whether `weigh` has to fit, and the contract that its weights will have."""
  source = sources.open_lazily(fast.cfg.data, fast.cfg.data.validation)
  last = _last(fast, slow)
  made_from = {
    **slow.contract,
    **encode.make_contract(fast, source),
    "captions": contract.captions(source.all_captions),
    "weights": {"candidates": last.cfg.weights.candidates},
  }
  stored = provenance.find_record(
    last.folder / layout.WEIGHTS, fusion.KIND, made_from
  )
  return stored is None, made_from


def _last(fast: stages.Run, slow: stages.Run) -> stages.Run:
  """The stage that was trained last, whose folder holds the weights."""
  return slow if fast.cfg.stage == "fast" else fast


def _weigh(fast: stages.Run, slow: stages.Run) -> None:
  needed, made_from = weights_needed(fast, slow)
  if not needed:
    return
  last = _last(fast, slow)
  source = sources.open_split(fast.cfg.data, fast.cfg.data.validation)
  store = encode.write_memories(
    slow, source, slow.folder / layout.VALIDATION, stale="remake"
  )
  weights = _fit(fast, slow, store, source, last.cfg.weights.candidates)
  fusion.save(last.folder, weights, made_from)


def _fit(
  fast: stages.Run,
  slow: stages.Run,
  store: memories.Memories,
  source: sources.Source,
  candidates: int,
) -> fusion.Weights:
  """Fits gamma, beta and tau on all validation captions."""
  vectors = encode.encode_visuals(fast, source)
  text, owner = pipeline.caption_table(source, fast.tokenizer)
  queries = encode.encode_texts(fast, text)
  rows, dots = exact.find_nearest(
    vectors, queries, min(candidates, len(vectors))
  )
  rows = np.asarray(rows)
  scorer = scorers.Scorer(slow, store)
  scale = fast_models.bound_scale(fast.params["fast"]["log_scale"])
  return fitting.fit(
    scorer(text, rows),
    rerank.count_targets(text),
    np.asarray(dots),
    float(scale),
    rows == owner[:, None],
    np.ones(rows.shape, bool),
  )
