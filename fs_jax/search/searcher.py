"""The front door: opens a gallery and answers queries in plain language.

    from fs_jax.search import searcher

    search = searcher.open("runs/quickstart")
    answer = search("a turtle right of a banana", k=5)
    print(answer)  # the query and its 5 best visuals
    for hit in answer.hits:
      print(hit.id, hit.score, hit.item.path)

A search has two steps. Fast, a dual encoder, turns the query into a vector and
finds the visuals with the nearest vectors. Slow, a captioner, then reads the
query word by word with each of the best candidates, and both scores together
decide the final order. Without Slow (`slow=False`), Fast's order is final.

`open` takes one of two kinds of folder:

* a workdir, in which `launch.train`, `launch.encode` and `launch.export_index`
  stored stages and galleries. The data must still be there.
* a packed gallery, made by `launch.encode --pack`, which needs no data.

Either way it checks that models, vectors, index, memories and weights belong
together, and otherwise says which command makes the wrong one anew.

Command line, studies and servers all use this `Searcher`. Its `fast_ranker` and
`reranker` are for evaluation, which works on token rows instead of strings.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from fs_jax import types
from fs_jax.data import sources
from fs_jax.gallery import buckets, encode, exact, index, items, memories
from fs_jax.machine import commands, compile_cache, provenance
from fs_jax.runs import layout, stages
from fs_jax.search import fusion, packed, rankers, remake
from fs_jax.search import scorer as scorers

DEFAULT_RERANK = 20  # candidates that Slow re-ranks if a call does not say
WARM_K = 256  # answers or candidates for which `Searcher.warm` prepares
DEFAULT_SPLIT = "test"  # the split whose gallery of a workdir is opened


class Hit(NamedTuple):
  """A visual that answers a query."""

  id: str
  row: int  # its row in the gallery
  fast: float  # Fast's score f·g, the cosine of the two vectors
  score: float | None  # u + beta f·g, nats; None if Slow did not score it
  moved: int  # places that re-ranking moved it up; negative = down
  item: items.Item  # path and captions, for people


class Answer(NamedTuple):
  """The answer to a query. Printed, it shows the query and its hits."""

  query: str
  hits: tuple[Hit, ...]  # best first
  fast_rows: tuple[int, ...]  # all candidates in Fast's order, before Slow
  fast_scores: tuple[float, ...]  # their scores f·g
  unknown: tuple[str, ...]  # words not learned, which models cannot tell apart
  stages_ms: dict[str, float]  # wall time of the whole call, by stage

  def __str__(self) -> str:
    width = max((len(hit.id) for hit in self.hits), default=0)
    lines = [
      f"{rank:>4}  {hit.id:<{width}}  {hit.item.caption}"
      for rank, hit in enumerate(self.hits, 1)
    ]
    return "\n".join([self.query, *lines])


class Judge(NamedTuple):
  """Slow, and what it needs to re-rank a gallery."""

  run: stages.Run
  memories: memories.Memories  # what Slow stored of each visual
  weights: fusion.Weights  # how Slow weighs beside the gallery's Fast


class Searcher:
  """Answers queries over one gallery. `open` makes one from a folder.

  Call it with a query, or `search` several at once. `warm` compiles everything
  before the first query, as a server wants. `len` is the number of visuals.

  Attributes:
    fast: the dual encoder's stage.
    index: the index of the gallery's vectors.
    items: what people see of each visual, by row.
    judge: Slow over the same gallery, or None for Fast alone.
    scorer: scores pairs of a row and a text with Slow, or None.

  Args:
    fast: the stage whose vectors the index holds.
    index: the gallery's index.
    items: the gallery's items, in the order of the index.
    judge: Slow over the same gallery; None for Fast alone.
    pictures: rows -> frames uint8 [T,H,W,3] of each, to show; None if neither
      data nor thumbnails are there.
  """

  def __init__(
    self,
    fast: stages.Run,
    index: exact.Index,
    items: items.Items,
    judge: Judge | None = None,
    pictures: Callable[[Sequence[int]], list[np.ndarray]] | None = None,
  ):
    self.fast, self.index, self.items, self.judge = fast, index, items, judge
    self._pictures = pictures
    self._encode = encode.make_text_encoder(fast)
    self.scorer: scorers.Scorer | None = None
    if judge is not None:
      self.scorer = scorers.Scorer(judge.run, judge.memories)

  def __len__(self) -> int:
    return self.index.size

  def __call__(
    self, query: str, *, k: int = 10, rerank: int | None = None
  ) -> Answer:
    """Answers one query; arguments and errors as `search`."""
    return self.search([query], k=k, rerank=rerank)[0]

  def search(
    self, queries: Sequence[str], *, k: int = 10, rerank: int | None = None
  ) -> list[Answer]:
    """Answers several queries in one batch.

    Args:
      queries: strings in plain language.
      k: hits per query, if the gallery has as many.
      rerank: candidates per query that Slow scores; 0 = none, so that Fast's
        order is final; None = 20 if the searcher has Slow, else 0.

    Returns:
      An answer for each query, in the order given.

    Raises:
      ValueError: a query that has no known word or is too long; k < 1; a rerank
        that is negative, or positive without Slow.
    """
    if isinstance(queries, str):
      raise ValueError(
        f"queries: must be several; got the string {queries[:40]!r}. call the "
        "searcher itself, or put it in a list"
      )
    reranked = self._resolve_rerank(k, rerank)
    if not len(queries):
      return []
    tokenizer = self.fast.tokenizer
    unknown = [tuple(tokenizer.check_query(query)) for query in queries]
    text = tokenizer.encode(list(queries))
    ranker = self.fast_ranker(max(k, reranked))
    candidates = ranker(text)
    per_query = dict(ranker.stages_ms)
    final = candidates
    if reranked:
      second = self.reranker(reranked, ranker=ranker)
      final = second.order(text, candidates)
      per_query = dict(second.stages_ms)
    stages_ms = {name: ms * len(queries) for name, ms in per_query.items()}
    return [
      self._answer(q, query, words, candidates, final, k, reranked, stages_ms)
      for q, (query, words) in enumerate(zip(queries, unknown, strict=True))
    ]

  def _resolve_rerank(self, k: int, rerank: int | None) -> int:
    """Checks k and rerank; returns how many candidates Slow will score."""
    if k < 1:
      raise ValueError(f"k: must be at least 1; got {k}. pass k=1 or more")
    if rerank is None:
      rerank = DEFAULT_RERANK if self.judge else 0
    if rerank < 0:
      raise ValueError(
        f"rerank: must be at least 0; got {rerank}. pass 0 for none"
      )
    if rerank and self.judge is None:
      raise ValueError(
        f"rerank: must be 0 if Slow was not opened; got {rerank}. open the "
        "gallery with slow=True"
      )
    return min(rerank, len(self))

  def _answer(
    self,
    q: int,
    query: str,
    unknown: tuple[str, ...],
    candidates: types.Candidates,
    final: types.Candidates,
    k: int,
    reranked: int,
    stages_ms: dict[str, float],
  ) -> Answer:
    """The answer to query q, from Fast's candidates and their final order."""
    rows = np.asarray(candidates.rows[q])
    dots = np.asarray(candidates.scores[q])
    place = {int(row): at for at, row in enumerate(rows) if row >= 0}
    hits = []
    best = zip(final.rows[q, :k], final.scores[q, :k], strict=True)
    for at, (row, score) in enumerate((int(r), float(s)) for r, s in best):
      if row < 0:
        break
      before, item = place[row], self.items[row]
      both = score if before < reranked else None
      hits.append(
        Hit(item.id, row, float(dots[before]), both, before - at, item)
      )
    dots_of = tuple(float(x) for x in dots[: len(place)])
    return Answer(query, tuple(hits), tuple(place), dots_of, unknown, stages_ms)

  def fast_ranker(self, depth: int) -> rankers.Fast:
    """A ranker of Fast alone, with `depth` candidates per query."""
    return rankers.Fast(self._encode, self.index, depth)

  def reranker(
    self, k: int, depth: int = 100, *, ranker: rankers.Ranker | None = None
  ) -> rankers.Reranker:
    """A ranker that orders Fast's best k by both scores.

    Args:
      k: candidates that Slow scores.
      depth: candidates that Fast finds; those beyond k stay behind.
      ranker: finds the candidates instead of Fast.

    Raises:
      ValueError: Slow was not opened.
    """
    if self.judge is None or self.scorer is None:
      raise ValueError(
        "rerank: needs Slow; got a searcher without one. open the gallery with "
        "slow=True"
      )
    first = ranker or self.fast_ranker(depth)
    return rankers.Reranker(first, self.scorer, self.judge.weights, k)

  def warm(self, k: int = WARM_K) -> float:
    """Compiles everything that queries can need; returns the seconds it took.

    Afterwards no query waits for the compiler, whatever its words and however
    many come at once.

    Args:
      k: the most answers or candidates that a query will ask for.
    """
    length = self.fast.cfg.tokens.length
    with compile_cache.counting() as count:
      for rows in buckets.SIZES:
        self._encode(np.zeros((rows, length), np.int32))
      self.index.warm(min(k, len(self)))
      if self.scorer is not None:
        self.scorer.warm()
    return count.elapsed

  def pictures(self, rows: Sequence[int]) -> list[np.ndarray]:
    """The frames of rows, uint8 [T,H,W,3] each, from data or thumbnails.

    Raises:
      ValueError: neither the data nor thumbnails are there.
    """
    if self._pictures is None:
      raise ValueError(
        "pictures: must be in the gallery or its data; got neither. pack it "
        f"again: {commands.program('encode')} --pack"
      )
    return self._pictures(rows)


def open(
  path: epath.PathLike, split: str | None = None, *, slow: bool = True
) -> Searcher:
  """Opens a workdir or a packed gallery for searching.

  Args:
    path: the folder of either.
    split: the split whose gallery is searched. By default "test" in a workdir,
      and the split that was packed in a packed gallery.
    slow: False opens Fast alone, which needs no memories and does not re-rank.

  Returns:
    A Searcher, after checking that models, vectors, index, items, memories and
    weights belong together.

  Raises:
    ValueError: one of them is missing, damaged, or made from other models or
      visuals; the message holds the command that makes it anew.
  """
  folder = epath.Path(path)
  if packed.is_packed(folder):
    return _open_packed(folder, split, slow)
  return _open_workdir(folder, split or DEFAULT_SPLIT, slow)


def _open_workdir(workdir: epath.Path, split: str, slow: bool) -> Searcher:
  name = layout.best_fast(workdir)
  if name is None:
    raise ValueError(
      f"{workdir}: must hold a trained fast or distill; got neither. train "
      f"one: {commands.program('train')}, or {commands.program('quickstart')}"
    )
  gallery = layout.gallery(workdir, split)
  again = remake.command(workdir, split)
  if not gallery.index.exists():
    raise ValueError(
      f"{workdir}: must hold an index of split {split!r}; got none. make it: "
      f"{again}"
    )
  fast = stages.load(layout.stage(workdir, name))
  source = sources.open_lazily(fast.cfg.data, split)
  made_from = encode.make_contract(fast, source)
  judge = None
  if slow:
    folder = layout.stage(workdir, layout.SLOW)
    if not stages.is_finished(folder):
      raise ValueError(
        f"{folder}: must be trained to its end to re-rank; got none that is. "
        f"train it: {commands.program('train')}, or give --rerank=0"
      )
    judge = stages.load(folder)
  return assemble(
    fast,
    gallery,
    made_from,
    captions=items.make_contract(source, made_from["split"])["captions"],
    root=fast.cfg.data.dir,
    judge=judge,
    pictures=lambda rows: list(source.visuals(rows)),
    mend=lambda _: f"make it anew: {again}",
  )


def _open_packed(folder: epath.Path, split: str | None, slow: bool) -> Searcher:
  manifest = packed.read(folder)
  packed_split = manifest["contract"]["split"].get("split")
  if split is not None and split != packed_split:
    raise ValueError(
      f"split: must be {packed_split!r}, which {folder} holds; got {split!r}. "
      "leave it out, or open another gallery"
    )
  fast = stages.load(layout.stage(folder, "fast"))
  judge = None
  if slow:
    if not stages.is_finished(layout.stage(folder, layout.SLOW)):
      raise ValueError(
        f"{folder}: must hold Slow to re-rank; got a gallery that was packed "
        "without. pack it again with --slow, or give --rerank=0"
      )
    judge = stages.load(layout.stage(folder, layout.SLOW))
  parts = {p: manifest["contract"][p] for p in ("split", "items")}
  return assemble(
    fast,
    layout.Gallery(folder),
    {**fast.contract, **parts},
    captions=manifest["contract"]["captions"],
    judge=judge,
    weights_at=folder,
    mend=lambda _: packed.MEND,
  )


def assemble(
  fast: stages.Run,
  gallery: layout.Gallery,
  made_from: provenance.Contract,
  *,
  captions: Mapping[str, object] | None = None,
  root: str = "",
  judge: stages.Run | None = None,
  weights_at: epath.Path | None = None,
  memories_at: epath.Path | None = None,
  pictures: Callable[[Sequence[int]], list[np.ndarray]] | None = None,
  mend: Callable[[epath.Path], str],
) -> Searcher:
  """Makes a Searcher from a gallery's folders and the stages that made them.

  `open` calls it for folders with the usual layout, studies for others.

  Args:
    fast: the stage whose vectors the index holds.
    gallery: the gallery's folders.
    made_from: the contract that the index must have.
    captions: the part `captions` that the items must have as well, if known.
    root: the data's folder, for the items' paths.
    judge: the stage that re-ranks; None for Fast alone.
    weights_at: the folder of the weights, if not the stage trained last.
    memories_at: the folder of the memories, if not beside the index.
    pictures: as in Searcher; None shows the items' thumbnails.
    mend: folder -> the fix that errors suggest for it.

  Raises:
    ValueError: a folder that is damaged or has another contract.
  """
  loaded = index.load(gallery.index, made_from, mend=mend(gallery.index))
  visuals = {p: made_from[p] for p in ("split", "items")}
  listed = items.Items(
    gallery.items,
    visuals | ({"captions": captions} if captions else {}),
    root=root,
    mend=mend(gallery.items),
  )
  slow = None
  if judge is not None:
    folder = memories_at or gallery.memories
    store = memories.Memories(
      folder,
      {**judge.contract, "split": made_from["split"]},
      ids=loaded.ids,
      hashes=False,
      mend=mend(folder),
    )
    last = judge if fast.cfg.stage == "fast" else fast
    weights = fusion.load(
      weights_at or last.folder,
      {**fast.contract, **judge.contract},
      mend=mend(weights_at) if weights_at else "",
    )
    slow = Judge(judge, store, weights)
  if pictures is None and len(listed) and listed.thumbnail(0):
    pictures = lambda rows: [_decode(listed.thumbnail(int(r))) for r in rows]
  return Searcher(fast, loaded, listed, slow, pictures)


def _decode(picture: bytes | None) -> np.ndarray:
  """Decodes a thumbnail that `packed` wrote: uint8 [1,H,W,3]."""
  with Image.open(io.BytesIO(picture or b""), formats=packed.FORMATS) as image:
    return np.asarray(image.convert("RGB"))[None]
