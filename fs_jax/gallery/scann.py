"""ScaNN: built, measured, written and read; the one module that knows it.

Its native code ends the process on damaged files, vectors that are not finite
and some shapes, and unpickles ids that it finds beside an index. So everything
is checked before it, and ids never pass through it.
"""

import dataclasses
import functools
import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from fs_jax import types
from fs_jax.gallery import exact, tuner
from fs_jax.machine import errors
from fs_jax.machine import manifest as manifests

MEND = f"build the index again: {manifests.how_to_make('index')}"
# Leaves to search and rows to score again for k answers; None = no tree.
Given = Callable[[int], tuple[int, int] | None]


@dataclasses.dataclass(frozen=True)
class Settings:
  """How ScaNN is built."""

  brute_below: int = 20_000  # rows; fewer are compared one by one
  leaves: int = 0  # of the tree; 0 = 1.5 sqrt(C)
  # Both 0 = the cheapest that reach `recall` on the sample, for each depth.
  leaves_to_search: int = 0
  reorder: int = 0  # scores computed exactly; k if that is more
  recall: float = 0.99  # to reach at 10 and at 100, against exact search
  soar: float = 1.5  # strength of spilling to a second leaf; 0 = none


@functools.cache
def module() -> Any:
  """ScaNN's module of NumPy searchers, or None where it is not installed.

  ScaNN imports TensorFlow where it finds it, and versions that it was not built
  for crash. It does not need it, so it is hidden for the moment.
  """
  kept = sys.modules.pop("tensorflow", None)
  sys.modules["tensorflow"] = None  # type: ignore[assignment]
  try:
    return importlib.import_module("scann.scann_ops.py.scann_ops_pybind")
  except ImportError:
    return None
  finally:
    del sys.modules["tensorflow"]
    if kept is not None:
      sys.modules["tensorflow"] = kept


def check_settings(settings: Settings, size: int) -> None:
  leaves = _leaves(settings, size)
  if not 1 <= leaves <= size:
    raise ValueError(
      f"leaves: must be in 1..{size}, the rows; got {leaves}. change it"
    )
  if not 0 <= settings.leaves_to_search <= leaves:
    raise ValueError(
      f"leaves_to_search: must be in 0..{leaves}, the leaves; got "
      f"{settings.leaves_to_search}. change either"
    )
  if settings.reorder < 0 or settings.soar < 0 or not 0 < settings.recall <= 1:
    raise ValueError(
      f"settings: need reorder >= 0, soar >= 0 and 0 < recall <= 1; got "
      f"{settings}. change them"
    )


def _leaves(settings: Settings, size: int) -> int:
  return settings.leaves or min(size, math.ceil(1.5 * math.sqrt(size)))


def is_tree(settings: Settings, vectors: np.ndarray) -> bool:
  # Codes are of two dimensions each, learned from 16 rows or more.
  size, width = vectors.shape
  return size >= max(16, settings.brute_below) and width >= 4


def build(
  corpus: types.Corpus,
  folder: epath.Path,
  settings: Settings | None,
  queries: np.ndarray,
) -> dict[str, Any]:
  """Builds, writes, reads back, measures; fields of the manifest.

  Without settings vectors are compared one by one.
  """
  size, width = corpus.vectors.shape
  used: dict[str, Any] = {"method": "brute force"}
  builder = module().builder(corpus.vectors, min(size, 10), "dot_product")
  if settings is None:
    builder = builder.score_brute_force()
  else:
    leaves = _leaves(settings, size)
    used = {
      "method": "tree, anisotropic codes, exact reordering",
      "leaves": leaves,
      "soar": settings.soar,
    }
    builder = builder.tree(
      num_leaves=leaves,
      num_leaves_to_search=leaves,  # every search says how many
      training_sample_size=min(size, max(100_000, 50 * leaves)),
      soar_lambda=settings.soar or None,
    )
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    builder = builder.reorder(max(tuner.AT))
  try:
    built = builder.build()
  except RuntimeError as error:
    raise ValueError(
      f"scann: must be able to build from {settings}; got {error}. change them "
      f"or use kind 'exact'"
    ) from error
  _write(built, folder)
  del built  # what is measured is what was written
  searcher = load(folder)
  depths = tuner.depths(size)
  truth = np.asarray(
    exact.index(corpus.vectors).search(queries, depths[-1]).rows
  )

  def measure(given: Given, k: int) -> dict[int, float]:
    ask = functools.partial(nearest, searcher, given)
    found = np.asarray(exact.search(ask, size, width, queries, k).rows)
    return {
      d: exact.recall(found[:, :d], truth[:, :d]) for d in depths if d <= k
    }

  if settings is not None:
    used |= tuner.tune(
      tuner.Tree(size, leaves, size * (2 if settings.soar else 1)),
      # The best 10 of 100 are the 10 best: one search tells of all depths.
      lambda *pair: measure(lambda _: pair, min(depths[-1], pair[1])),
      settings.recall,
      leaves=settings.leaves_to_search,
      reorder=settings.reorder,
    )
  told = {}
  for k in tuner.AT:  # as a user will search
    depth = min(k, size)
    got = measure(functools.partial(effort, used, size), depth)
    told[f"recall_at_{k}"] = got[depth]
  return {"settings": used} | told


def _write(searcher: Any, folder: epath.Path) -> None:
  folder.mkdir()
  try:
    # Relative paths, or the index could not be moved, nor even renamed.
    searcher.serialize(os.fspath(folder), relative_path=True)
  except RuntimeError as error:
    # Native code says "I/O error" whatever the reason: all but always space.
    if "I/O error" not in str(error):
      raise
    raise errors.DiskFull(f"{folder}: could not be written") from error


def load(folder: epath.Path) -> Any:
  """A searcher from files that were checked.

  Not ScaNN's own `load_searcher`: that unpickles a scann_docids.pkl beside the
  index, and so runs whatever someone put there.
  """
  scann = module()
  assets = (folder / "scann_assets.pbtxt").read_text()
  try:
    native = scann.scann_pybind.ScannNumpy(os.fspath(folder), assets)
  except RuntimeError as error:
    raise ValueError(
      f"{folder}: must be readable by scann as installed; got {error}. {MEND}"
    ) from error
  return scann.ScannSearcher(native)


def effort(
  settings: Mapping[str, Any], size: int, k: int
) -> tuple[int, int] | None:
  return tuner.setting(settings, size, k) if "leaves" in settings else None


def nearest(
  searcher: Any, given: Given, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rows and scores [Q,k], equal scores by row; -1 where none was reached."""
  effort, depth = given(k), {}
  if effort:
    leaves, reorder = effort
    depth = {
      "leaves_to_search": leaves,
      "pre_reorder_num_neighbors": reorder,
    }
  rows, scores = searcher.search_batched_parallel(
    queries,
    k,
    batch_size=max(1, -(-len(queries) // (os.cpu_count() or 1))),
    **depth,
  )
  # What is not reached comes as row 0 with a score of NaN.
  reached = np.isfinite(scores)
  scores = np.where(reached, scores, -np.inf).astype(np.float32)
  rows = np.where(reached, rows.astype(np.int64), -1)
  last = np.where(reached, rows, np.iinfo(np.int64).max)
  order = np.lexsort((last, -scores), axis=1)
  return (
    np.take_along_axis(rows, order, axis=1),
    np.take_along_axis(scores, order, axis=1),
  )
