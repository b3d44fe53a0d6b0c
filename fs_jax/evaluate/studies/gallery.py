"""A study's gallery: a split encoded and indexed for its Fasts and its Slow.

What is asked of it is left to `answers`, and in which order all is done to
`study`.
"""

import functools
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
  searchers: dict[str, searcher.Searcher]  # of each Fast: "fast", ...
  vectors: dict[str, np.ndarray]
  slow: stages.Run
  scorer: scorers.Scorer
  visuals: provenance.Contract  # whose they are: parts split and items
  models: dict[str, provenance.Contract]  # of each Fast and of "slow"

  @property
  def weights(self) -> dict[str, fusion.Weights]:
    """Of each Fast that Slow re-ranks."""
    return {
      name: one.judge.weights
      for name, one in self.searchers.items()
      if one.judge is not None
    }


def open_gallery(
  parts: checklist.Parts,
  split: str,
  fasts: tuple[str, ...],
  *,
  reranked: tuple[str, ...] = ("fast", "distill"),
) -> Gallery:
  """Encodes and indexes a split for some Fasts and one Slow.

  What is there of the same models and visuals is read, all else is made anew.

  Args:
    parts: of the study; the stages lie in its folder.
    split: of the dataset that Slow was trained on.
    fasts: stages.
    reranked: those of `fasts` that Slow re-ranks; their weights are there.
  """
  workdir = parts.folder
  loaded = {n: stages.load(layout.stage(workdir, n)) for n in fasts}
  slow = stages.load(layout.stage(workdir, layout.SLOW))
  source = sources.open_split(slow.cfg.data, split)
  store_from = encode.make_contract(slow, source)
  shown_from = items.make_contract(source, store_from["split"])
  shared = layout.gallery(workdir, split)
  parts.do(
    f"memories-{split}",
    store_from,
    lambda: encode.write_memories(
      slow, source, shared.memories, stale="remake"
    ),
    lambda: provenance.folder_needed(
      shared.memories, "memories", store_from, hashes=False
    ),
  )
  searchers, vectors = {}, {}
  for name, fast in loaded.items():
    where = layout.fast_gallery(workdir, split, name)
    made_from = encode.make_contract(fast, source)
    parts.do(
      f"index-{split}-{name}",
      made_from,
      functools.partial(_write_index, fast, source, where, made_from),
      functools.partial(_lacks_index, where, made_from),
    )
    encode.write_items(source, where.items, shown_from)
    searchers[name] = searcher.Searcher(
      loading.load(
        fast,
        where,
        made_from,
        root=fast.cfg.data.dir,
        judge=slow if name in reranked else None,
        memories_at=shared.memories,
        pictures=lambda rows: list(source.visuals(rows)),
        mend=provenance.deletable,
      )
    )
    vectors[name] = corpus.load(
      where.vectors, made_from, mend=provenance.deletable(where.vectors)
    ).vectors
  scorer = next(one.scorer for one in searchers.values() if one.scorer)
  models: dict[str, provenance.Contract] = {
    name: fast.contract for name, fast in loaded.items()
  }
  return Gallery(
    split,
    source,
    searchers,
    vectors,
    slow,
    scorer,
    {part: store_from[part] for part in ("split", "items")},
    models | {"slow": slow.contract},
  )


def _write_index(
  fast: stages.Run,
  source: sources.Source,
  where: layout.Gallery,
  made_from: provenance.Contract,
) -> None:
  made = encode.write_vectors(fast, source, where.vectors, stale="remake")
  if not provenance.folder_needed(where.index, "index", made_from):
    return
  queries = encode.sample_queries(fast)
  index.build(made, where.index, made_from, queries=queries)


def _lacks_index(where: layout.Gallery, made_from: provenance.Contract) -> bool:
  return any(
    provenance.folder_needed(folder, kind, made_from, hashes=False)
    for folder, kind in ((where.vectors, "vectors"), (where.index, "index"))
  )
