"""A study's gallery: made searchable, asked by every ranker, answers kept.

What is measured of them, and in which order all is done, is left to `study`.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from fs_jax import (
  calibrate,
  contract,
  corpus,
  derive,
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
  source: sources.Source, tokenizer: Any, count: int, captions: int = 1
) -> Queries:
  """The first captions of `count` visuals, spread over the source's groups.

  Every n-th visual, so that all groups have their say. A visual of no group is
  alone in its own.
  """
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
  made_from: contract.Contract,
  make: Callable[[], rankers.Ranker],
  in_group: Callable[[], types.Candidates],
  tokens: np.ndarray,
) -> Answers:
  """A ranker's answers, kept with the time they took, compiling left out.

  Answers and times of other models, weights, visuals, queries or of another
  machine are made anew.
  """
  folder = parts.folder / "answers" / name

  def needed() -> bool:
    return derive.folder_needed(folder, "answers", made_from)

  def run() -> None:
    if not needed():
      return
    found, stages_ms = rankers.timed(make(), tokens)
    kept = {"found": found, "in_group": in_group()}
    with files.folder(folder, "answers") as temporary:
      for what, candidates in kept.items():
        for field, array in candidates._asdict().items():
          path = temporary / f"{what}-{field}.npy"
          files.write_array(path, np.asarray(array))
      fields = {
        "kind": "answers",
        "stages_ms": stages_ms,
        "contract": made_from,
      }
      files.write_manifest(temporary, fields)

  parts.do(f"rank-{name}", made_from, run, needed)
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
  source: sources.Source
  fasts: dict[str, runs.Run]  # "fast", "distill", ...
  slow: runs.Run
  indices: dict[str, index.Index]  # of each Fast
  vectors: dict[str, np.ndarray]
  scorer: rerank.Scorer
  fits: dict[str, calibrate.Fit]  # of each Fast that re-ranking takes
  visuals: contract.Contract  # whose they are: parts split and items
  models: dict[str, contract.Contract]  # of each Fast and of "slow"


def open_gallery(
  parts: parts.Parts,
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
  loaded = {n: runs.load(runs.folder(parts.folder, n)) for n in fasts}
  judge = runs.load(runs.folder(parts.folder, slow))
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
    indices[name] = index.load(kept / name / "index", made_from)
    vectors[name] = corpus.load(kept / name / "corpus", made_from).vectors
  store_from = encode.contracts_of(judge, source)
  parts.do(
    f"memories-{split}",
    store_from,
    lambda: encode.write_store(judge, source, kept / "store", stale="remake"),
    lambda: derive.folder_needed(
      kept / "store", "store", store_from, hashes=False
    ),
  )
  memories = store.Store(kept / "store", store_from)
  fits = {}
  for name in reranked:
    if name in loaded:
      run = loaded[name]
      where = judge.folder if run.cfg.stage == "fast" else run.folder
      fits[name] = runs.load_fit(where, {**run.contract, **judge.contract})
  scorer = rerank.Scorer(judge, memories)
  models: dict[str, contract.Contract] = {
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
  run: runs.Run,
  source: sources.Source,
  where: epath.Path,
  *,
  made_from: contract.Contract,
) -> None:
  made = encode.write_corpus(run, source, where / "corpus", stale="remake")
  if not derive.folder_needed(where / "index", "index", made_from):
    return
  some = sources.open_lazily(run.cfg.data, run.cfg.data.validation)
  text, _ = pipeline.caption_table(some, run.tokenizer)
  queries = encode.text_vectors(run, text[:1024])
  index.build(made, where / "index", made_from, queries=queries)


def _lacks_index(where: epath.Path, made_from: contract.Contract) -> bool:
  return any(
    derive.folder_needed(where / kind, kind, made_from, hashes=False)
    for kind in ("corpus", "index")
  )


class Found(NamedTuple):
  """Where the parts of a searchable gallery lie, and what makes them anew."""

  fast: epath.Path
  slow: epath.Path
  fit: epath.Path  # folder that holds fit.json
  index: epath.Path
  store: epath.Path
  remake: str  # a command, for a gallery of other models or visuals


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
  shared = workdir / "gallery" / split
  for name in names:
    slow = workdir / "slow"
    fit = workdir / name if name == "distill" else slow
    if (shared / name / "index").exists():
      again = f"python -m launch.evaluate --workdir={workdir} --split={split}"
      return Found(
        *(workdir / name, slow, fit, shared / name / "index"),
        *(shared / "store", again),
      )
    if (workdir / "gallery" / "index").exists():
      return Found(
        *(workdir / name, slow, fit, workdir / "gallery" / "index"),
        *(workdir / "gallery" / "store", encode_command(workdir, name, split)),
      )
  raise ValueError(
    f"{workdir}: must hold an index of split {split!r}; got none. make it: "
    f"{encode_command(workdir, names[0], split)}"
  )


def encode_command(workdir: epath.Path, name: str, split: str) -> str:
  """What encodes and indexes a split for one of a workdir's Fasts."""
  out, run = workdir / "gallery", workdir / name
  slow = (
    f"--slow={workdir / 'slow'} " if runs.finished(workdir / "slow") else ""
  )
  return (
    f"python -m launch.encode --run={run} {slow}--split={split} --out={out} "
    f"--replace && python -m launch.export_index --corpus={out / 'corpus'} "
    f"--out={out / 'index'} --run={run} --replace"
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
      _asked_of(gallery, asked, name),
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
  said = rank(
    parts,
    "slow",
    _asked_of(gallery, asked, slow=True),
    lambda: rankers.Slow(gallery.scorer, DEPTH),
    lambda: rankers.slow_in_group(
      gallery.scorer, asked.tokens, _groups(asked.truth)
    ),
    asked.tokens,
  )
  results["slow"] = _score("slow", said, asked.truth)
  for shown, name, k in _reranked_over(gallery, ks):
    said = rank(
      parts,
      shown,
      _asked_of(gallery, asked, name, slow=True, k=k),
      functools.partial(_reranked, gallery, name, k),
      functools.partial(_reranked_inside, gallery, asked, name),
      asked.tokens,
    )
    results[shown] = _score(shown, said, asked.truth)
  return results


def used_on(gallery: Gallery, ks: tuple[int, ...]) -> dict[str, list[int]]:
  """Candidates that `answers` re-ranks with each Fast's weights."""
  used: dict[str, list[int]] = {}
  for _, name, k in _reranked_over(gallery, ks):
    used.setdefault(name, []).append(k)
  return used


def _reranked_over(
  gallery: Gallery, ks: tuple[int, ...]
) -> list[tuple[str, str, int]]:
  """(row of the table, Fast, candidates) of everything that is re-ranked."""
  over = [("fast_rerank@20", "fast", 20)]
  over += [(f"rerank@{k}", "distill", k) for k in ks]
  return [one for one in over if one[1] in gallery.fits]


def _asked_of(
  gallery: Gallery,
  asked: Queries,
  name: str = "",
  *,
  slow: bool = False,
  k: int = 0,
) -> contract.Contract:
  """All that answers and their times follow from.

  Args:
    gallery: searched.
    asked: the queries.
    name: of the Fast that looks, if one does.
    slow: whether Slow does.
    k: candidates that Slow re-ranks; 0 = it ranks everything.
  """
  parts: dict[str, Mapping[str, Any]] = {**gallery.visuals}
  if name:
    manifest = gallery.indices[name].manifest
    parts |= gallery.models[name]
    parts["index"] = {
      "backend": manifest["backend"],
      "settings": json.dumps(manifest["settings"], sort_keys=True),
      "digest": contract.digest_json(manifest["files"]),
    }
  if slow:
    parts |= gallery.models["slow"]
  if k:
    fit = gallery.fits[name].to_dict()
    parts["weights"] = {"reranked": k, "digest": contract.digest_json(fit)}
  truth = {
    field: np.asarray(x)
    for field, x in asked.truth._asdict().items()
    if x is not None
  }
  parts["queries"] = {
    "count": len(asked.texts),
    "depth": DEPTH,
    "texts": contract.digest_json(asked.texts),
    "tokens": contract.digest({"tokens": asked.tokens}),
    "truth": contract.digest(truth),
  }
  parts["machine"] = {"device": device()}
  return parts


def made_from(gallery: Gallery, asked: Queries) -> contract.Contract:
  """What a report of all rankers follows from, by ranker."""
  everything: dict[str, Mapping[str, Any]] = {}
  for name in gallery.fasts:
    k = DEPTH if name in gallery.fits else 0
    of_name = _asked_of(gallery, asked, name, slow=bool(k), k=k)
    everything |= {f"{name}: {part}": x for part, x in of_name.items()}
  return everything


def device() -> str:
  """What this runs on, in words."""
  kind = jax.devices()[0].device_kind
  return f"{len(jax.devices())} x {kind}, {os.cpu_count()} CPU cores"


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
