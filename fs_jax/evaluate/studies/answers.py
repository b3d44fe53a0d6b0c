"""All rankers' answers to a study's queries, stored with their contracts.

Answers are asked for again if anything they depend on has changed. Metrics are
left to `results`.
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
from fs_jax.evaluate import results
from fs_jax.evaluate.studies import checklist, galleries, query_set
from fs_jax.machine import files, provenance
from fs_jax.machine import manifest as manifests
from fs_jax.runs import contract as contracts
from fs_jax.runs import layout
from fs_jax.search import rankers

DEPTH = 100  # Fast's list length: for re-ranking, and for recall


class Answers(NamedTuple):
  """A ranker's answers, as stored on disk."""

  candidates: types.Candidates
  in_group: types.Candidates  # the members of each query's group, scored
  stages_ms: dict[str, float]  # per query


class Reranking(NamedTuple):
  """A row of the table in which Slow re-ranks a Fast's candidates."""

  row: str
  fast: str
  k: int  # candidates


def rank(
  steps: checklist.Checklist,
  name: str,
  contract: provenance.Contract,
  make: Callable[[], rankers.Ranker],
  in_group: Callable[[], types.Candidates],
  tokens: np.ndarray,
) -> Answers:
  """Returns a ranker's answers; times leave out compilation.

  Stores answers and times, and asks again if they belong to other models,
  weights, visuals or queries, or to another machine.
  """
  folder = steps.folder / layout.ANSWERS / name

  def needed() -> bool:
    return provenance.folder_needed(folder, "answers", contract)

  def run() -> None:
    if not needed():
      return
    candidates, stages_ms = rankers.time_answers(make(), tokens)
    lists = {"found": candidates, "in_group": in_group()}
    with manifests.folder(folder, "answers") as temporary:
      for prefix, listed in lists.items():
        for field, array in listed._asdict().items():
          path = temporary / f"{prefix}-{field}.npy"
          files.write_array(path, np.asarray(array))
      fields = {
        "kind": "answers",
        "stages_ms": stages_ms,
        "contract": contract,
      }
      manifests.write_manifest(temporary, fields)

  steps.do(f"rank-{name}", contract, run, needed)
  return read_answers(folder)


def read_answers(folder: epath.Path) -> Answers:
  """Reads the answers that `rank` stored."""
  mend = provenance.how_to_remake(folder)
  manifest = manifests.read_manifest(folder, "answers", mend=mend)

  def read(prefix: str) -> types.Candidates:
    return types.Candidates(
      *(
        np.load(os.fspath(folder / f"{prefix}-{field}.npy"))
        for field in types.Candidates._fields
      )
    )

  return Answers(read("found"), read("in_group"), manifest["stages_ms"])


def ask_fasts(
  steps: checklist.Checklist,
  gallery: galleries.Gallery,
  queries: query_set.QuerySet,
  prefix: str = "",
) -> dict[str, results.Result]:
  """Asks every Fast the same queries; the distilled one is "fast_distilled".

  Args:
    steps: the study's checklist.
    gallery: the gallery to search.
    queries: the queries.
    prefix: begins the names on disk, to keep other queries' answers apart.
  """
  by_ranker = {}
  for name in gallery.searchers:
    row = "fast_distilled" if name == "distill" else name
    answers = rank(
      steps,
      prefix + row,
      _contract(gallery, queries, name),
      functools.partial(gallery.searchers[name].fast_ranker, DEPTH),
      functools.partial(_fast_in_group, gallery, queries, name),
      queries.tokens,
    )
    by_ranker[row] = _score(row, answers, queries.truth)
  return by_ranker


def ask_all(
  steps: checklist.Checklist,
  gallery: galleries.Gallery,
  queries: query_set.QuerySet,
  ks: tuple[int, ...],
) -> dict[str, results.Result]:
  """Asks every ranker the same queries: Fasts, re-ranked, Slow alone.

  Returns:
    "fast", "fast_distilled", any other Fast under its own name, "slow",
    "fast_rerank@20" and "rerank@K", which is over the distilled Fast.
  """
  by_ranker = ask_fasts(steps, gallery, queries)
  answers = rank(
    steps,
    "slow",
    _contract(gallery, queries, slow=True),
    lambda: rankers.Slow(gallery.scorer, DEPTH),
    lambda: rankers.score_groups_with_slow(
      gallery.scorer, queries.tokens, _groups(queries.truth)
    ),
    queries.tokens,
  )
  by_ranker["slow"] = _score("slow", answers, queries.truth)
  for row, name, k in _rerankings(gallery, ks):
    answers = rank(
      steps,
      row,
      _contract(gallery, queries, name, slow=True, k=k),
      functools.partial(gallery.searchers[name].reranker, k, DEPTH),
      functools.partial(_reranked_in_group, gallery, queries, name),
      queries.tokens,
    )
    by_ranker[row] = _score(row, answers, queries.truth)
  return by_ranker


def list_reranked(
  gallery: galleries.Gallery, ks: tuple[int, ...]
) -> dict[str, list[int]]:
  """Lists, by Fast, how many candidates `ask_all` re-ranks with its weights."""
  reranked: dict[str, list[int]] = {}
  for _, name, k in _rerankings(gallery, ks):
    reranked.setdefault(name, []).append(k)
  return reranked


def report_contract(
  gallery: galleries.Gallery, queries: query_set.QuerySet
) -> provenance.Contract:
  """Everything that a report of all rankers depends on, by ranker."""
  parts: dict[str, Mapping[str, Any]] = {}
  for name in gallery.searchers:
    k = DEPTH if name in gallery.weights else 0
    contract = _contract(gallery, queries, name, slow=bool(k), k=k)
    parts |= {f"{name}: {part}": x for part, x in contract.items()}
  return parts


def describe_device() -> str:
  """This machine's devices and cores, in words."""
  kind = jax.devices()[0].device_kind
  return f"{len(jax.devices())} x {kind}, {os.cpu_count()} CPU cores"


def _rerankings(
  gallery: galleries.Gallery, ks: tuple[int, ...]
) -> list[Reranking]:
  rows = [Reranking("fast_rerank@20", "fast", 20)]
  rows += [Reranking(f"rerank@{k}", "distill", k) for k in ks]
  return [row for row in rows if row.fast in gallery.weights]


def _contract(
  gallery: galleries.Gallery,
  queries: query_set.QuerySet,
  name: str = "",
  *,
  slow: bool = False,
  k: int = 0,
) -> provenance.Contract:
  """Everything that answers and their times depend on.

  Args:
    gallery: the gallery that is searched.
    queries: the queries.
    name: the Fast that searches, if one does.
    slow: whether Slow scores.
    k: candidates that Slow re-ranks; 0 = it ranks the whole gallery.
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
  parts["queries"] = {
    "count": len(queries.texts),
    "depth": DEPTH,
    "texts": provenance.digest_json(queries.texts),
    "tokens": contracts.digest({"tokens": queries.tokens}),
    "truth": _digest_truth(queries.truth),
  }
  parts["machine"] = {"device": describe_device()}
  return parts


def _digest_truth(truth: results.Truth) -> str:
  fields = {
    "positives": truth.positives,
    "clusters": truth.clusters,
    "gallery": truth.gallery_size,
  }
  if truth.groups is not None:
    fields["groups"] = truth.groups
  return contracts.digest({k: np.asarray(x) for k, x in fields.items()})


def _score(name: str, answers: Answers, truth: results.Truth) -> results.Result:
  return results.score(
    name,
    answers.candidates,
    truth,
    ms_per_query=sum(answers.stages_ms.values()),
    stages_ms=answers.stages_ms,
    # Groups of one test nothing.
    in_group=answers.in_group if _groups(truth).shape[1] > 1 else None,
  )


def _fast_in_group(
  gallery: galleries.Gallery, queries: query_set.QuerySet, name: str
) -> types.Candidates:
  return rankers.score_groups_with_fast(
    gallery.searchers[name].fast,
    gallery.vectors[name],
    queries.tokens,
    _groups(queries.truth),
  )


def _reranked_in_group(
  gallery: galleries.Gallery, queries: query_set.QuerySet, name: str
) -> types.Candidates:
  return rankers.rerank_groups(
    _fast_in_group(gallery, queries, name),
    gallery.scorer,
    gallery.weights[name],
    queries.tokens,
  )


def _groups(truth: results.Truth) -> np.ndarray:
  """int32 [Q,M] groups of look-alikes; without groups, the positives."""
  return truth.positives if truth.groups is None else truth.groups
