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
  stored stages and galleries. Its data must be there too, and are compared
  with what was stored of them.
* a packed gallery, made by `launch.encode --pack`, which needs no data.

Either way it checks that models, vectors, index, memories and weights belong
together, and otherwise says which command makes the wrong one anew.

Command line, studies and servers all use this `Searcher`. Its `fast_ranker` and
`reranker` are for evaluation, which works on token rows instead of strings.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from fs_jax import types
from fs_jax.gallery import buckets, encode, items
from fs_jax.machine import commands, compile_cache
from fs_jax.search import loading, packed, rankers
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
    gallery: the gallery and the models that search it.
  """

  def __init__(self, gallery: loading.Gallery):
    self.fast, self.index = gallery.fast, gallery.index
    self.items, self.judge = gallery.items, gallery.judge
    self._pictures = gallery.pictures
    self._encode = encode.make_text_encoder(self.fast)
    self.scorer: scorers.Scorer | None = None
    if self.judge is not None:
      self.scorer = scorers.Scorer(self.judge.run, self.judge.memories)

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
    fast_scores = tuple(float(x) for x in dots[: len(place)])
    return Answer(
      query, tuple(hits), tuple(place), fast_scores, unknown, stages_ms
    )

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
    return Searcher(loading.load_packed(folder, split, slow))
  return Searcher(loading.load_workdir(folder, split or DEFAULT_SPLIT, slow))
