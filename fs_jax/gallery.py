"""A study's gallery: made searchable, asked by every ranker, answers kept.

What is measured of them, and in which order all is done, is left to `study`.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from fs_jax import (
  config,
  contract,
  corpus,
  encode,
  evaluate,
  files,
  index,
  parts,
  rankers,
  rerank,
  runs,
  store,
  types,
)
from fs_jax.data import pipeline, sources

DEPTH = 100  # Fast's list: what re-ranking and recall look at


class Queries(NamedTuple):
  """The questions of a study, the same for every ranker."""

  texts: tuple[str, ...]
  tokens: np.ndarray  # int32 [Q,L]
  truth: evaluate.Truth


def questions(
  cfg: config.Data, split: str, tokenizer: Any, count: int, captions: int = 1
) -> Queries:
  """The first captions of `count` visuals, spread over the split's groups.

  Every n-th visual, so that all groups have their say. A visual of no group is
  alone in its own.
  """
  source = sources.open_split(cfg, split)
  rows = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
  said = [source.captions(int(i))[:captions] for i in rows]
  texts = tuple(text for some in said for text in some)
  owner = np.repeat(rows, [len(some) for some in said]).astype(np.int32)
  groups = np.asarray(source.groups)
  members = [
    np.flatnonzero(groups == groups[i]) if groups[i] >= 0 else np.array([i])
    for i in owner
  ]
  padded = np.full((len(owner), max(map(len, members))), -1, np.int32)
  for row, found in zip(padded, members, strict=True):
    row[: len(found)] = found
  truth = evaluate.Truth(
    positives=owner[:, None],
    clusters=owner,
    gallery=len(source),
    groups=padded,
  )
  return Queries(texts, tokenizer.encode(list(texts)), truth)


class Answers(NamedTuple):
  """What a ranker said, as it is kept on disk."""

  found: types.Candidates
  in_group: types.Candidates  # the members of each query's group, scored
  stages_ms: dict[str, float]  # per query


def rank(
  parts: parts.Parts,
  name: str,
  make: Callable[[], rankers.Ranker],
  in_group: Callable[[], types.Candidates],
  tokens: np.ndarray,
  *,
  warm: np.ndarray | None = None,
) -> Answers:
  """A ranker's answers, kept with the time they took.

  It answers the queries `warm` before (all of them if None), so that compiling
  is in no figure.
  """
  folder = parts.folder / "answers" / name

  def run() -> None:
    ranker = make()
    ranker(tokens if warm is None else warm)
    found = ranker(tokens)
    kept = {"found": found, "in_group": in_group()}
    with files.folder(folder) as temporary:
      for what, candidates in kept.items():
        for field, array in candidates._asdict().items():
          path = temporary / f"{what}-{field}.npy"
          files.write_array(path, np.asarray(array))
      stages = dict(ranker.stages_ms)
      files.write_manifest(temporary, {"kind": "answers", "stages_ms": stages})

  parts.do(f"rank-{name}", run)
  return read_answers(folder)


def read_answers(folder: epath.Path) -> Answers:
  """Reads what `rank` kept."""
  manifest = files.read_manifest(folder, "answers")

  def candidates(what: str) -> types.Candidates:
    return types.Candidates(
      *(
        np.load(os.fspath(folder / f"{what}-{field}.npy"))
        for field in types.Candidates._fields
      )
    )

  return Answers(
    candidates("found"), candidates("in_group"), manifest["stages_ms"]
  )


class Gallery(NamedTuple):
  """A split ready to be searched."""

  split: str
  fasts: dict[str, runs.Run]  # "fast", "distill", ...
  slow: runs.Run
  indices: dict[str, index.Index]  # of each Fast
  vectors: dict[str, np.ndarray]
  scorer: rerank.Scorer
  fits: dict[str, Any]  # of each Fast that has one


def open_gallery(
  parts: parts.Parts, split: str, fasts: tuple[str, ...], slow: str = "slow"
) -> Gallery:
  """Encodes and indexes a split for some Fasts and one Slow."""
  loaded = {n: runs.load(runs.folder(parts.folder, n)) for n in fasts}
  judge = runs.load(runs.folder(parts.folder, slow))
  source = sources.open_split(judge.cfg.data, split)
  indices, vectors = {}, {}
  for name, run in loaded.items():
    where = parts.folder / "gallery" / split / name

    def build(run=run, where=where) -> None:
      made = encode.write_corpus(run, source, where / "corpus")
      some = sources.open_split(run.cfg.data, run.cfg.data.validation)
      text, _ = pipeline.caption_table(some, run.tokenizer)
      index.build(
        made,
        where / "index",
        {"fast": run.fast_contract},
        queries=encode.text_vectors(run, text[:1024]),
      )

    parts.do(f"index-{split}-{name}", build)
    expected = {
      "fast": run.fast_contract,
      "items": contract.items(source.ids),
    }
    indices[name] = index.load(where / "index", expected)
    vectors[name] = corpus.load(where / "corpus", expected).vectors
  kept = parts.folder / "gallery" / split / "store"
  parts.do(f"memories-{split}", lambda: encode.write_store(judge, source, kept))
  memories = store.Store(kept, {"slow": judge.slow_contract()})
  fits = {
    name: runs.load_fit(judge.folder if name == "fast" else run.folder)
    for name, run in loaded.items()
    if (run.folder / runs.FIT).exists() or name == "fast"
  }
  scorer = rerank.Scorer(judge, memories)
  return Gallery(split, loaded, judge, indices, vectors, scorer, fits)


class Found(NamedTuple):
  """Where the parts of a searchable gallery lie."""

  fast: epath.Path
  slow: epath.Path
  fit: epath.Path  # folder that holds fit.json
  index: epath.Path
  store: epath.Path


def find_gallery(workdir: epath.Path, split: str) -> Found:
  """The best Fast that has an index of the split, with what re-ranks it.

  A study keeps gallery/<split>/<stage>/index, the programs one by one
  gallery/index.

  Raises:
    ValueError: no trained Fast, or no index; the message says what to run.
  """
  names = [n for n in ("distill", "fast") if runs.finished(workdir / n)]
  if not names:
    raise ValueError(
      f"{workdir}: must hold a trained fast or distill; got neither. run make "
      "quickstart, or python -m launch.train"
    )
  for name in names:
    for folder, kept in (
      (workdir / "gallery" / split / name, workdir / "gallery" / split),
      (workdir / "gallery", workdir / "gallery"),
    ):
      if (folder / "index").exists():
        slow = workdir / "slow"
        fit = workdir / name if name == "distill" else slow
        return Found(
          workdir / name, slow, fit, folder / "index", kept / "store"
        )
  raise ValueError(
    f"{workdir}: must hold an index of split {split!r}; got none. run python "
    f"-m launch.encode --run={workdir / names[0]} --split={split} "
    f"--out={workdir / 'gallery'}, then launch.export_index"
  )


def fast_answers(
  parts: parts.Parts, gallery: Gallery, asked: Queries, prefix: str = ""
) -> dict[str, evaluate.Result]:
  """Every Fast on the same queries; the distilled one as "fast_distilled".

  Args:
    parts: of the study.
    gallery: searched.
    asked: the queries.
    prefix: of the names on disk, apart for other queries.
  """
  results = {}
  for name in gallery.fasts:
    shown = "fast_distilled" if name == "distill" else name
    said = rank(
      parts,
      prefix + shown,
      functools.partial(_fast, gallery, name),
      functools.partial(_fast_inside, gallery, asked, name),
      asked.tokens,
    )
    results[shown] = _score(shown, said, asked.truth)
  return results


def answers(
  parts: parts.Parts, gallery: Gallery, asked: Queries, ks: tuple[int, ...]
) -> dict[str, evaluate.Result]:
  """Every ranker on the same queries: Fasts, re-ranked, Slow alone.

  Returns:
    "fast", "fast_distilled", any other Fast under its own name, "slow",
    "fast_rerank@20" and "rerank@K", which is over the distilled Fast.
  """
  results = fast_answers(parts, gallery, asked)
  lengths = rerank.cut_lengths(asked.tokens)
  _, one_of_each = np.unique(lengths, return_index=True)
  said = rank(
    parts,
    "slow",
    lambda: rankers.Slow(gallery.scorer, DEPTH),
    lambda: rankers.slow_in_group(
      gallery.scorer, asked.tokens, _groups(asked.truth)
    ),
    asked.tokens,
    warm=asked.tokens[one_of_each],  # all its shapes
  )
  results["slow"] = _score("slow", said, asked.truth)
  over = [("fast_rerank@20", "fast", 20)]
  over += [(f"rerank@{k}", "distill", k) for k in ks]
  for shown, name, k in over:
    said = rank(
      parts,
      shown,
      functools.partial(_reranked, gallery, name, k),
      functools.partial(_reranked_inside, gallery, asked, name),
      asked.tokens,
    )
    results[shown] = _score(shown, said, asked.truth)
  return results


def _score(name: str, said: Answers, truth: evaluate.Truth) -> evaluate.Result:
  return evaluate.score(
    name,
    said.found,
    truth,
    ms_per_query=sum(said.stages_ms.values()),
    stages_ms=said.stages_ms,
    # Groups of one are no test of anything.
    in_group=said.in_group if _groups(truth).shape[1] > 1 else None,
  )


def _fast(gallery: Gallery, name: str) -> rankers.Fast:
  return rankers.Fast(gallery.fasts[name], gallery.indices[name], DEPTH)


def _reranked(gallery: Gallery, name: str, k: int) -> rankers.Reranked:
  base = _fast(gallery, name)
  return rankers.Reranked(base, gallery.scorer, gallery.fits[name], k)


def _fast_inside(
  gallery: Gallery, asked: Queries, name: str
) -> types.Candidates:
  return rankers.fast_in_group(
    gallery.fasts[name],
    gallery.vectors[name],
    asked.tokens,
    _groups(asked.truth),
  )


def _reranked_inside(
  gallery: Gallery, asked: Queries, name: str
) -> types.Candidates:
  inside = _fast_inside(gallery, asked, name)
  return rankers.reranked_in_group(
    inside, gallery.scorer, gallery.fits[name], asked.tokens
  )


def _groups(truth: evaluate.Truth) -> np.ndarray:
  """int32 [Q,G] of who looks alike; alone where nobody said."""
  return truth.positives if truth.groups is None else truth.groups
