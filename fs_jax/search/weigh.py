"""How Slow and a Fast weigh together, fitted on validation and kept.

The weights of both follow from the two stages, the validation split and the
number of candidates; those of anything else are fitted anew.
"""

import numpy as np
from etils import epath

from fs_jax.data import pipeline, sources
from fs_jax.gallery import encode, exact, memories
from fs_jax.machine import commands, processes, provenance
from fs_jax.models import fast as fast_models
from fs_jax.runs import contract, layout, stages
from fs_jax.search import fusion, rerank
from fs_jax.search import scorer as scorers


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
  with processes.first_then_others("weigh"):
    if processes.is_first():
      fast = stages.load(layout.stage(workdir, fast_name))
      slow = stages.load(layout.stage(workdir, slow_name))
      _weigh(fast, slow)


def weigh_all(workdir: epath.PathLike) -> list[str]:
  """`weigh` of Slow and every Fast of a workdir; names of the Fasts.

  Raises:
    ValueError: no Slow, or no Fast, is trained.
  """
  names = [
    name
    for name in ("fast", "distill")
    if stages.finished(layout.stage(workdir, name))
  ]
  if not names or not stages.finished(layout.stage(workdir, "slow")):
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
  """Whether `weigh` has to fit, and what its weights follow from."""
  source = sources.open_lazily(fast.cfg.data, fast.cfg.data.validation)
  last = _last(fast, slow)
  made_from = {
    **slow.contract,
    **encode.contracts_of(fast, source),
    "captions": contract.captions(source.all_captions),
    "weights": {"candidates": last.cfg.weights.candidates},
  }
  known = provenance.record(
    last.folder / layout.WEIGHTS, fusion.KIND, made_from
  )
  return known is None, made_from


def _last(fast: stages.Run, slow: stages.Run) -> stages.Run:
  """The stage that was trained last, which holds the weights of both."""
  return slow if fast.cfg.stage == "fast" else fast


def _weigh(fast: stages.Run, slow: stages.Run) -> None:
  needed, made_from = weights_needed(fast, slow)
  if not needed:
    return
  last = _last(fast, slow)
  source = sources.open_split(fast.cfg.data, fast.cfg.data.validation)
  memories = encode.write_memories(
    slow, source, slow.folder / layout.VALIDATION, stale="remake"
  )
  fit = _fit(fast, slow, memories, source, last.cfg.weights.candidates)
  fusion.save(last.folder, fit, made_from)


def _fit(
  fast: stages.Run,
  slow: stages.Run,
  memories: memories.Memories,
  source: sources.Source,
  candidates: int,
) -> fusion.Weights:
  """gamma, beta and tau from all validation captions."""
  vectors = encode.visual_vectors(fast, source)
  text, owner = pipeline.caption_table(source, fast.tokenizer)
  queries = encode.text_vectors(fast, text)
  rows, dots = exact.nearest(vectors, queries, min(candidates, len(vectors)))
  rows = np.asarray(rows)
  scorer = scorers.Scorer(slow, memories)
  scale = fast_models.bound_scale(fast.params["fast"]["log_scale"])
  return fusion.fit(
    scorer(text, rows),
    rerank.count_targets(text),
    np.asarray(dots),
    float(scale),
    rows == owner[:, None],
    np.ones(rows.shape, bool),
  )
