"""A study's gallery: a split encoded and indexed for its Fasts and its Slow.

What is asked of it is left to `answers`, and in which order all is done to
`study`.
"""

import functools
from typing import NamedTuple

import numpy as np
from etils import epath

from fs_jax.data import pipeline, sources
from fs_jax.evaluate.studies import checklist
from fs_jax.gallery import corpus, encode, exact, index
from fs_jax.gallery import memories as memory_store
from fs_jax.machine import provenance
from fs_jax.runs import stages
from fs_jax.search import fusion
from fs_jax.search import scorer as scorers


class Gallery(NamedTuple):
  """A split ready to be searched."""

  split: str
  source: sources.Source
  fasts: dict[str, stages.Run]  # "fast", "distill", ...
  slow: stages.Run
  indices: dict[str, exact.Index]  # of each Fast
  vectors: dict[str, np.ndarray]
  scorer: scorers.Scorer
  fits: dict[str, fusion.Fit]  # of each Fast that re-ranking takes
  visuals: provenance.Contract  # whose they are: parts split and items
  models: dict[str, provenance.Contract]  # of each Fast and of "slow"


def open_gallery(
  parts: checklist.Parts,
  split: str,
  fasts: tuple[str, ...],
  slow: str = "slow",
  *,
  reranked: tuple[str, ...] = ("fast", "distill"),
) -> Gallery:
  """Encodes and indexes a split for some Fasts and one Slow.

  What is there of the same models and visuals is read, all else is made anew.

  Args:
    parts: of the study; the stages lie in its folder.
    split: of the dataset that Slow was trained on.
    fasts: stages.
    slow: stage.
    reranked: those of `fasts` that Slow re-ranks; their weights are there.
  """
  loaded = {n: stages.load(stages.folder(parts.folder, n)) for n in fasts}
  judge = stages.load(stages.folder(parts.folder, slow))
  source = sources.open_split(judge.cfg.data, split)
  kept = parts.folder / "gallery" / split
  indices, vectors = {}, {}
  for name, run in loaded.items():
    made_from = encode.contracts_of(run, source)
    step = functools.partial(
      _write_index, run, source, kept / name, made_from=made_from
    )
    needed = functools.partial(_lacks_index, kept / name, made_from)
    parts.do(f"index-{split}-{name}", made_from, step, needed)
    indices[name] = index.load(
      kept / name / "index",
      made_from,
      mend=provenance.deletable(kept / name / "index"),
    )
    vectors[name] = corpus.load(
      kept / name / "corpus",
      made_from,
      mend=provenance.deletable(kept / name / "corpus"),
    ).vectors
  store_from = encode.contracts_of(judge, source)
  parts.do(
    f"memories-{split}",
    store_from,
    lambda: encode.write_store(judge, source, kept / "store", stale="remake"),
    lambda: provenance.folder_needed(
      kept / "store", "store", store_from, hashes=False
    ),
  )
  memories = memory_store.Store(
    kept / "store", store_from, mend=provenance.deletable(kept / "store")
  )
  fits = {}
  for name in reranked:
    if name in loaded:
      run = loaded[name]
      where = judge.folder if run.cfg.stage == "fast" else run.folder
      fits[name] = fusion.load(where, {**run.contract, **judge.contract})
  scorer = scorers.Scorer(judge, memories)
  models: dict[str, provenance.Contract] = {
    name: run.contract for name, run in loaded.items()
  }
  return Gallery(
    split,
    source,
    loaded,
    judge,
    indices,
    vectors,
    scorer,
    fits,
    {part: store_from[part] for part in ("split", "items")},
    models | {"slow": judge.contract},
  )


def _write_index(
  run: stages.Run,
  source: sources.Source,
  where: epath.Path,
  *,
  made_from: provenance.Contract,
) -> None:
  made = encode.write_corpus(run, source, where / "corpus", stale="remake")
  if not provenance.folder_needed(where / "index", "index", made_from):
    return
  some = sources.open_lazily(run.cfg.data, run.cfg.data.validation)
  text, _ = pipeline.caption_table(some, run.tokenizer)
  queries = encode.text_vectors(run, text[:1024])
  index.build(made, where / "index", made_from, queries=queries)


def _lacks_index(where: epath.Path, made_from: provenance.Contract) -> bool:
  return any(
    provenance.folder_needed(where / kind, kind, made_from, hashes=False)
    for kind in ("corpus", "index")
  )
