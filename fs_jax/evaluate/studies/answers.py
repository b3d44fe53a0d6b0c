"""A study's questions, asked of every ranker, and the answers kept.

Answers carry all that they follow from, and are asked for again where any of it
changed. What is measured of them is left to `results`.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from fs_jax import types
from fs_jax.data import sources
from fs_jax.evaluate import results
from fs_jax.evaluate.studies import checklist, gallery
from fs_jax.machine import files, provenance
from fs_jax.machine import manifest as manifests
from fs_jax.runs import contract, layout
from fs_jax.search import rankers

DEPTH = 100  # Fast's list: what re-ranking and recall look at


class Queries(NamedTuple):
  """The questions of a study, the same for every ranker."""

  texts: tuple[str, ...]
  tokens: np.ndarray  # int32 [Q,L]
  truth: results.Truth


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
  truth = results.Truth(
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
  parts: checklist.Parts,
  name: str,
  made_from: provenance.Contract,
  make: Callable[[], rankers.Ranker],
  in_group: Callable[[], types.Candidates],
  tokens: np.ndarray,
) -> Answers:
  """A ranker's answers, kept with the time they took, compiling left out.

  Answers and times of other models, weights, visuals, queries or of another
  machine are made anew.
  """
  folder = parts.folder / layout.ANSWERS / name

  def needed() -> bool:
    return provenance.folder_needed(folder, "answers", made_from)

  def run() -> None:
    if not needed():
      return
    found, stages_ms = rankers.time_answers(make(), tokens)
    kept = {"found": found, "in_group": in_group()}
    with manifests.folder(folder, "answers") as temporary:
      for what, candidates in kept.items():
        for field, array in candidates._asdict().items():
          path = temporary / f"{what}-{field}.npy"
          files.write_array(path, np.asarray(array))
      fields = {
        "kind": "answers",
        "stages_ms": stages_ms,
        "contract": made_from,
      }
      manifests.write_manifest(temporary, fields)

  parts.do(f"rank-{name}", made_from, run, needed)
  return read_answers(folder)


def read_answers(folder: epath.Path) -> Answers:
  """Reads what `rank` kept."""
  mend = provenance.deletable(folder)
  manifest = manifests.read_manifest(folder, "answers", mend=mend)

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


def ask_fasts(
  parts: checklist.Parts,
  gallery: gallery.Gallery,
  asked: Queries,
  prefix: str = "",
) -> dict[str, results.Result]:
  """Every Fast on the same queries; the distilled one as "fast_distilled".

  Args:
    parts: of the study.
    gallery: searched.
    asked: the queries.
    prefix: of the names on disk, apart for other queries.
  """
  results = {}
  for name in gallery.searchers:
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


def ask_all(
  parts: checklist.Parts,
  gallery: gallery.Gallery,
  asked: Queries,
  ks: tuple[int, ...],
) -> dict[str, results.Result]:
  """Every ranker on the same queries: Fasts, re-ranked, Slow alone.

  Returns:
    "fast", "fast_distilled", any other Fast under its own name, "slow",
    "fast_rerank@20" and "rerank@K", which is over the distilled Fast.
  """
  results = ask_fasts(parts, gallery, asked)
  said = rank(
    parts,
    "slow",
    _asked_of(gallery, asked, slow=True),
    lambda: rankers.Slow(gallery.scorer, DEPTH),
    lambda: rankers.score_groups_with_slow(
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


def used_on(
  gallery: gallery.Gallery, ks: tuple[int, ...]
) -> dict[str, list[int]]:
  """Candidates that `ask_all` re-ranks with each Fast's weights."""
  used: dict[str, list[int]] = {}
  for _, name, k in _reranked_over(gallery, ks):
    used.setdefault(name, []).append(k)
  return used


def _reranked_over(
  gallery: gallery.Gallery, ks: tuple[int, ...]
) -> list[tuple[str, str, int]]:
  """(row of the table, Fast, candidates) of everything that is re-ranked."""
  over = [("fast_rerank@20", "fast", 20)]
  over += [(f"rerank@{k}", "distill", k) for k in ks]
  return [one for one in over if one[1] in gallery.weights]


def _asked_of(
  gallery: gallery.Gallery,
  asked: Queries,
  name: str = "",
  *,
  slow: bool = False,
  k: int = 0,
) -> provenance.Contract:
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
    manifest = gallery.searchers[name].index.manifest
    parts |= gallery.models[name]
    parts["index"] = {
      "backend": manifest["backend"],
      "settings": json.dumps(manifest["settings"], sort_keys=True),
      "digest": provenance.digest_json(manifest["files"]),
    }
  if slow:
    parts |= gallery.models["slow"]
  if k:
    fit = gallery.weights[name].to_dict()
    parts["weights"] = {"reranked": k, "digest": provenance.digest_json(fit)}
  truth = {
    field: np.asarray(x)
    for field, x in asked.truth._asdict().items()
    if x is not None
  }
  parts["queries"] = {
    "count": len(asked.texts),
    "depth": DEPTH,
    "texts": provenance.digest_json(asked.texts),
    "tokens": contract.digest({"tokens": asked.tokens}),
    "truth": contract.digest(truth),
  }
  parts["machine"] = {"device": device()}
  return parts


def made_from(gallery: gallery.Gallery, asked: Queries) -> provenance.Contract:
  """What a report of all rankers follows from, by ranker."""
  everything: dict[str, Mapping[str, Any]] = {}
  for name in gallery.searchers:
    k = DEPTH if name in gallery.weights else 0
    of_name = _asked_of(gallery, asked, name, slow=bool(k), k=k)
    everything |= {f"{name}: {part}": x for part, x in of_name.items()}
  return everything


def device() -> str:
  """What this runs on, in words."""
  kind = jax.devices()[0].device_kind
  return f"{len(jax.devices())} x {kind}, {os.cpu_count()} CPU cores"


def _score(name: str, said: Answers, truth: results.Truth) -> results.Result:
  return results.score(
    name,
    said.found,
    truth,
    ms_per_query=sum(said.stages_ms.values()),
    stages_ms=said.stages_ms,
    # Groups of one are no test of anything.
    in_group=said.in_group if _groups(truth).shape[1] > 1 else None,
  )


def _fast(gallery: gallery.Gallery, name: str) -> rankers.Fast:
  return gallery.searchers[name].fast_ranker(DEPTH)


def _reranked(gallery: gallery.Gallery, name: str, k: int) -> rankers.Reranker:
  return gallery.searchers[name].reranker(k, DEPTH)


def _fast_inside(
  gallery: gallery.Gallery, asked: Queries, name: str
) -> types.Candidates:
  return rankers.score_groups_with_fast(
    gallery.searchers[name].fast,
    gallery.vectors[name],
    asked.tokens,
    _groups(asked.truth),
  )


def _reranked_inside(
  gallery: gallery.Gallery, asked: Queries, name: str
) -> types.Candidates:
  inside = _fast_inside(gallery, asked, name)
  return rankers.rerank_groups(
    inside, gallery.scorer, gallery.weights[name], asked.tokens
  )


def _groups(truth: results.Truth) -> np.ndarray:
  """int32 [Q,G] of who looks alike; alone where nobody said."""
  return truth.positives if truth.groups is None else truth.groups
