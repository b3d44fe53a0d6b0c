"""A study's gallery: a split encoded and indexed for its Fasts and its Slow.

Queries and answers are left to `answers`, the order of all steps to `study`.
"""

from typing import NamedTuple

import numpy as np

from fs_jax.data import sources
from fs_jax.evaluate.studies import checklist
from fs_jax.gallery import corpus, encode, index, items
from fs_jax.machine import provenance
from fs_jax.runs import layout, stages
from fs_jax.search import fusion, loading, searcher
from fs_jax.search import scorer as scorers


class Gallery(NamedTuple):
  """A split ready to be searched by several Fasts and one Slow."""

  split: str
  source: sources.Source
  searchers: dict[str, searcher.Searcher]  # by Fast: "fast", ...
  vectors: dict[str, np.ndarray]  # by Fast
  slow: stages.Run
  scorer: scorers.Scorer
  visuals: provenance.Contract  # parts split and items
  models: dict[str, provenance.Contract]  # by Fast, and "slow"

  @property
  def weights(self) -> dict[str, fusion.Weights]:
    """The weights of each Fast that Slow re-ranks."""
    return {
      name: search.judge.weights
      for name, search in self.searchers.items()
      if search.judge is not None
    }


def open_gallery(
  steps: checklist.Checklist,
  split: str,
  fasts: tuple[str, ...],
  *,
  reranked: tuple[str, ...] = ("fast", "distill"),
) -> Gallery:
  """Encodes and indexes a split for several Fasts and one Slow.

  Reads what belongs to the same models and visuals, and rebuilds the rest.

  Args:
    steps: the study's checklist; the stages are in its folder.
    split: a split of the dataset that Slow was trained on.
    fasts: the names of the Fasts' stages.
    reranked: those of `fasts` that Slow re-ranks; their weights must exist.
  """
  workdir = steps.folder
  runs = {name: stages.load(layout.stage(workdir, name)) for name in fasts}
  slow = stages.load(layout.stage(workdir, layout.SLOW))
  source = sources.open_split(slow.cfg.data, split)
  contract = encode.make_contract(slow, source)
  memories = layout.gallery(workdir, split).memories
  steps.do(
    f"memories-{split}",
    contract,
    lambda: encode.write_memories(slow, source, memories, stale="remake"),
    lambda: provenance.folder_needed(
      memories, "memories", contract, hashes=False
    ),
  )
  searchers, vectors = {}, {}
  for name, fast in runs.items():
    folders = layout.fast_gallery(workdir, split, name)
    expected = _index(steps, f"index-{split}-{name}", fast, source, folders)
    encode.write_items(
      source, folders.items, items.make_contract(source, contract["split"])
    )
    searchers[name] = searcher.Searcher(
      loading.load(
        fast,
        folders,
        expected,
        root=fast.cfg.data.dir,
        judge=slow if name in reranked else None,
        memories_at=memories,
        pictures=lambda rows: list(source.visuals(rows)),
        mend=provenance.how_to_remake,
      )
    )
    vectors[name] = corpus.load(
      folders.vectors, expected, mend=provenance.how_to_remake(folders.vectors)
    ).vectors
  models = {name: fast.contract for name, fast in runs.items()}
  return Gallery(
    split,
    source,
    searchers,
    vectors,
    slow,
    next(x.scorer for x in searchers.values() if x.scorer),
    {part: contract[part] for part in ("split", "items")},
    {**models, "slow": slow.contract},
  )


def _index(
  steps: checklist.Checklist,
  step: str,
  fast: stages.Run,
  source: sources.Source,
  folders: layout.Gallery,
) -> provenance.Contract:
  """Encodes and indexes a split for a Fast; returns the contract of both."""
  contract = encode.make_contract(fast, source)

  def write() -> None:
    vectors = encode.write_vectors(
      fast, source, folders.vectors, stale="remake"
    )
    if provenance.folder_needed(folders.index, "index", contract):
      queries = encode.sample_queries(fast)
      index.build(vectors, folders.index, contract, queries=queries)

  def needed() -> bool:
    return any(
      provenance.folder_needed(folder, kind, contract, hashes=False)
      for folder, kind in (
        (folders.vectors, "vectors"),
        (folders.index, "index"),
      )
    )

  steps.do(step, contract, write, needed)
  return contract
