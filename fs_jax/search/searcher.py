"""The front door: a folder opened, a question in words answered.

    from fs_jax.search import searcher
    search = searcher.open("runs/quickstart")
    print(search("a turtle right of a banana", k=5))

The folder is a workdir, whose data are compared with what was stored of them,
or a packed gallery, which needs no data. Programs, studies and servers ask the
rankers of the same Searcher.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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

RERANKED = 20  # candidates that Slow looks at, unless a call says otherwise
MOST = 256  # answers or candidates that `Searcher.warm` prepares for
SPLIT = "test"  # the gallery of a workdir, unless another one is asked for


class Hit(NamedTuple):
  """A visual that answers a query."""

  id: str
  row: int  # of the gallery
  fast: float  # f.g
  score: float | None  # u + beta f.g, nats; None where Slow did not look
  moved: int  # places that re-ranking moved it up; negative = down
  item: items.Item


class Answer(NamedTuple):
  """What came back for a query, best first."""

  query: str
  hits: tuple[Hit, ...]
  fast_rows: tuple[int, ...]  # Fast's own list, all that was looked at
  fast_scores: tuple[float, ...]
  unknown: tuple[str, ...]  # words that nobody taught, and were left out
  stages_ms: dict[str, float]  # wall time, of all queries of the call together

  def __str__(self) -> str:
    width = max((len(hit.id) for hit in self.hits), default=0)
    lines = [
      f"{rank:>4}  {hit.id:<{width}}  {hit.item.caption}"
      for rank, hit in enumerate(self.hits, 1)
    ]
    return "\n".join([self.query, *lines])


class Judge(NamedTuple):
  """Slow over a gallery."""

  run: stages.Run
  memories: memories.Memories
  weights: fusion.Weights  # how it weighs beside the Fast of the gallery


class Searcher:
  """Fast over an index, Slow over its best.

  Args:
    fast: the stage whose vectors the index holds.
    index: of the gallery.
    items: of the gallery, in the order of the index.
    judge: Slow over the same gallery; None for Fast alone.
    pictures: rows -> uint8 [T,H,W,3] each, to be shown.
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
    self._encode = encode.text_encoder(fast)
    self.scorer = judge and scorers.Scorer(judge.run, judge.memories)

  def __len__(self) -> int:
    return self.index.size

  def __call__(
    self, query: str, *, k: int = 10, rerank: int | None = None
  ) -> Answer:
    """Answers a query; see `search`."""
    return self.search([query], k=k, rerank=rerank)[0]

  def search(
    self, queries: Sequence[str], *, k: int = 10, rerank: int | None = None
  ) -> list[Answer]:
    """Answers queries, all of them in one batch.

    Args:
      queries: what people type.
      k: answers wanted.
      rerank: candidates that Slow looks at; 0 = none, None = 20 where there is
        a Slow.

    Raises:
      ValueError: a query without a known word, or too long a one; k or rerank
        that will not do.
    """
    if isinstance(queries, str):
      raise ValueError(
        f"queries: must be several; got the string {queries[:40]!r}. call the "
        "searcher itself, or put it in a list"
      )
    reranked = self._reranked(k, rerank)
    if not len(queries):
      return []
    tokenizer = self.fast.tokenizer
    unknown = [tuple(tokenizer.check_query(query)) for query in queries]
    text = tokenizer.encode(list(queries))
    ranker = self.fast_ranker(max(k, reranked))
    found = ranker(text)
    per_query = dict(ranker.stages_ms)
    final = found
    if reranked:
      second = self.reranker(reranked, ranker=ranker)
      final = second.order(text, found)
      per_query = dict(second.stages_ms)
    stages_ms = {name: ms * len(queries) for name, ms in per_query.items()}
    return [
      self._answer(q, query, words, found, final, k, reranked, stages_ms)
      for q, (query, words) in enumerate(zip(queries, unknown, strict=True))
    ]

  def _reranked(self, k: int, rerank: int | None) -> int:
    """Candidates that Slow will look at."""
    if k < 1:
      raise ValueError(f"k: must be at least 1; got {k}. ask for an answer")
    if rerank is None:
      rerank = RERANKED if self.judge else 0
    if rerank < 0:
      raise ValueError(f"rerank: must be at least 0; got {rerank}. 0 is none")
    if rerank and self.judge is None:
      raise ValueError(
        f"rerank: must be 0 where no Slow was opened; got {rerank}. open the "
        "gallery with slow=True"
      )
    return min(rerank, len(self))

  def _answer(
    self,
    q: int,
    query: str,
    unknown: tuple[str, ...],
    found: types.Candidates,
    final: types.Candidates,
    k: int,
    reranked: int,
    stages_ms: dict[str, float],
  ) -> Answer:
    rows, dots = np.asarray(found.rows[q]), np.asarray(found.scores[q])
    place = {int(row): at for at, row in enumerate(rows) if row >= 0}
    hits = []
    best = zip(final.rows[q, :k], final.scores[q, :k], strict=True)
    for at, (row, score) in enumerate((int(r), float(s)) for r, s in best):
      if row < 0:
        break
      was, item = place[row], self.items[row]
      judged = score if was < reranked else None
      hits.append(Hit(item.id, row, float(dots[was]), judged, was - at, item))
    dots_of = tuple(float(x) for x in dots[: len(place)])
    return Answer(query, tuple(hits), tuple(place), dots_of, unknown, stages_ms)

  def fast_ranker(self, depth: int) -> rankers.Fast:
    """Fast alone, with `depth` candidates a query."""
    return rankers.Fast(self._encode, self.index, depth)

  def reranker(
    self, k: int, depth: int = 100, *, ranker: rankers.Ranker | None = None
  ) -> rankers.Reranked:
    """Fast's best k in the order of both.

    Args:
      k: candidates that Slow looks at.
      depth: of Fast's list, whose rest stays behind them.
      ranker: that finds the candidates; Fast unless given.

    Raises:
      ValueError: no Slow was opened.
    """
    if self.judge is None or self.scorer is None:
      raise ValueError(
        "rerank: needs Slow; got a searcher without one. open the gallery with "
        "slow=True"
      )
    first = ranker or self.fast_ranker(depth)
    return rankers.Reranked(first, self.scorer, self.judge.weights, k)

  def warm(self, k: int = MOST) -> float:
    """Compiles all that answers can need; returns the seconds it took.

    After it no query waits for a compiler, whatever its words, however many
    come at once, and for up to `k` answers or candidates each.
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
    """What rows show: uint8 [T,H,W,3] each.

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
  """Opens a workdir or a packed gallery, each part compared with the others.

  Args:
    path: folder of either.
    split: whose gallery; "test" unless given, or the one that was packed.
    slow: whether Slow is opened too, to re-rank.

  Raises:
    ValueError: a part that is missing, damaged, or of other models or visuals,
      with the command that makes it anew.
  """
  folder = epath.Path(path)
  if packed.is_packed(folder):
    return _open_packed(folder, split, slow)
  return _open_workdir(folder, split or SPLIT, slow)


def _open_workdir(workdir: epath.Path, split: str, slow: bool) -> Searcher:
  name = layout.serving(workdir)
  if name is None:
    raise ValueError(
      f"{workdir}: must hold a trained fast or distill; got neither. train "
      f"one: {commands.program('train')}, or {commands.program('quickstart')}"
    )
  where = layout.gallery(workdir, split)
  again = remake.command(workdir, split)
  if not where.index.exists():
    raise ValueError(
      f"{workdir}: must hold an index of split {split!r}; got none. make it: "
      f"{again}"
    )
  fast = stages.load(layout.stage(workdir, name))
  source = sources.open_lazily(fast.cfg.data, split)
  made_from = encode.contracts_of(fast, source)
  judge = None
  if slow:
    folder = layout.stage(workdir, layout.SLOW)
    if not stages.finished(folder):
      raise ValueError(
        f"{folder}: must be trained to its end to re-rank; got none that is. "
        f"train it: {commands.program('train')}, or give --rerank=0"
      )
    judge = stages.load(folder)
  return assemble(
    fast,
    where,
    made_from,
    captions=items.contract_of(source, made_from["split"])["captions"],
    root=fast.cfg.data.dir,
    judge=judge,
    pictures=lambda rows: list(source.visuals(rows)),
    mend=lambda _: f"make it anew: {again}",
  )


def _open_packed(folder: epath.Path, split: str | None, slow: bool) -> Searcher:
  manifest = packed.read(folder)
  held = manifest["contract"]["split"].get("split")
  if split is not None and split != held:
    raise ValueError(
      f"split: must be {held!r}, which {folder} holds; got {split!r}. leave it "
      "out, or open another gallery"
    )
  fast = stages.load(layout.stage(folder, "fast"))
  judge = None
  if slow:
    if not stages.finished(layout.stage(folder, layout.SLOW)):
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
  where: layout.Gallery,
  made_from: provenance.Contract,
  *,
  captions: Mapping[str, Any] | None = None,
  root: str = "",
  judge: stages.Run | None = None,
  weights_at: epath.Path | None = None,
  memories_at: epath.Path | None = None,
  pictures: Callable[[Sequence[int]], list[np.ndarray]] | None = None,
  mend: Callable[[epath.Path], str],
) -> Searcher:
  """A Searcher of a gallery's folders and the stages that they belong to.

  Args:
    fast: whose vectors the index holds.
    where: the folders.
    made_from: what the index must have been made from.
    captions: what the items must have been made from as well, where known.
    root: where the data lie now, for the items' paths.
    judge: Slow, where it re-ranks.
    weights_at: folder that holds how both weigh, if not the stage trained
      last.
    memories_at: where they lie, if not beside the index.
    pictures: as of Searcher; thumbnails of the items if None.
    mend: a folder -> what to do where it is missing, damaged, or of something
      else.

  Raises:
    ValueError: a folder that is damaged or of something else.
  """
  searched = index.load(where.index, made_from, mend=mend(where.index))
  visuals = {p: made_from[p] for p in ("split", "items")}
  shown = items.Items(
    where.items,
    visuals | ({"captions": captions} if captions else {}),
    root=root,
    mend=mend(where.items),
  )
  stored = None
  if judge is not None:
    folder = memories_at or where.memories
    store = memories.Memories(
      folder,
      {**judge.contract, "split": made_from["split"]},
      ids=searched.ids,
      hashes=False,
      mend=mend(folder),
    )
    last = judge if fast.cfg.stage == "fast" else fast
    weights = fusion.load(
      weights_at or last.folder,
      {**fast.contract, **judge.contract},
      mend=mend(weights_at) if weights_at else "",
    )
    stored = Judge(judge, store, weights)
  if pictures is None and len(shown) and shown.thumbnail(0):
    pictures = lambda rows: [_decode(shown.thumbnail(int(r))) for r in rows]
  return Searcher(fast, searched, shown, stored, pictures)


def _decode(picture: bytes | None) -> np.ndarray:
  """uint8 [1,H,W,3] of a thumbnail that we wrote."""
  with Image.open(io.BytesIO(picture or b""), formats=packed.FORMATS) as image:
    return np.asarray(image.convert("RGB"))[None]
