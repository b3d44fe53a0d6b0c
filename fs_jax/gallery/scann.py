"""Builds, measures, writes and reads indexes of ScaNN.

No other module knows ScaNN. Its native code ends the process on damaged files,
on vectors that are not finite and on some shapes, and it unpickles ids that lie
beside an index. So everything is checked first, and ids never pass through it.
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
# k -> leaves to search and rows to score again for k answers; None = no tree.
Effort = Callable[[int], tuple[int, int] | None]


@dataclasses.dataclass(frozen=True)
class Settings:
  """How ScaNN is built."""

  brute_below: int = 20_000  # fewer rows than this are compared one by one
  leaves: int = 0  # leaves of the tree; 0 = 1.5 sqrt(C)
  # If both are 0: the cheapest that reach `recall` on the sample, per depth.
  leaves_to_search: int = 0
  reorder: int = 0  # scores computed exactly; at least k
  recall: float = 0.99  # target at 10 and at 100, against exact search
  soar: float = 1.5  # strength of spilling rows to a second leaf; 0 = none


@functools.cache
def import_scann() -> Any:
  """Imports ScaNN's module of NumPy searchers; None if it is not installed.

  ScaNN imports TensorFlow if present, and crashes with versions that it was not
  built for. It does not need TensorFlow, which is hidden during the import.
  """
  tensorflow = sys.modules.pop("tensorflow", None)
  sys.modules["tensorflow"] = None  # type: ignore[assignment]
  try:
    return importlib.import_module("scann.scann_ops.py.scann_ops_pybind")
  except ImportError:
    return None
  finally:
    del sys.modules["tensorflow"]
    if tensorflow is not None:
      sys.modules["tensorflow"] = tensorflow


def check_settings(settings: Settings, size: int) -> None:
  """Refuses settings that do not fit an index of `size` rows.

  Raises:
    ValueError: names the setting.
  """
  leaves = _leaves(settings, size)
  if not 1 <= leaves <= size:
    raise ValueError(
      f"leaves: must be in 1..{size}, the rows; got {leaves}. set it in "
      "that range, or to 0"
    )
  if not 0 <= settings.leaves_to_search <= leaves:
    raise ValueError(
      f"leaves_to_search: must be in 0..{leaves}, the leaves; got "
      f"{settings.leaves_to_search}. set it in that range, or more leaves"
    )
  if settings.reorder < 0 or settings.soar < 0 or not 0 < settings.recall <= 1:
    raise ValueError(
      f"settings: need reorder >= 0, soar >= 0 and 0 < recall <= 1; got "
      f"{settings}. set them in these ranges"
    )


def _leaves(settings: Settings, size: int) -> int:
  return settings.leaves or min(size, math.ceil(1.5 * math.sqrt(size)))


def uses_tree(settings: Settings, vectors: np.ndarray) -> bool:
  """Whether an index of these vectors gets a tree."""
  # A code covers two dimensions and is learned from at least 16 rows.
  size, width = vectors.shape
  return size >= max(16, settings.brute_below) and width >= 4


def build(
  corpus: types.Corpus,
  folder: epath.Path,
  settings: Settings | None,
  queries: np.ndarray,
) -> dict[str, Any]:
  """Builds an index, writes it, reads it back and measures its recall.

  Args:
    corpus: validated vectors.
    folder: the folder to make.
    settings: how to build a tree; None compares vectors one by one.
    queries: float32 [Q,E] on which recall is measured.

  Returns:
    Fields of the manifest: settings and recalls.

  Raises:
    ValueError: ScaNN cannot build from these settings.
    errors.DiskFull: no space is left.
  """
  size, width = corpus.vectors.shape
  used: dict[str, Any] = {"method": "brute force"}
  builder = import_scann().builder(corpus.vectors, min(size, 10), "dot_product")
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
      num_leaves_to_search=leaves,  # every search sets its own number
      training_sample_size=min(size, max(100_000, 50 * leaves)),
      soar_lambda=settings.soar or None,
    )
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    builder = builder.reorder(max(tuner.RECALL_DEPTHS))
  try:
    built = builder.build()
  except RuntimeError as error:
    raise ValueError(
      f"scann: must be able to build from {settings}; got {error}. pass "
      f"other settings, or use kind 'exact'"
    ) from error
  _write(built, folder)
  del built  # recall is measured on what was written
  searcher = load(folder)
  depths = tuner.list_depths(size)
  truth = np.asarray(
    exact.make_index(corpus.vectors).search(queries, depths[-1]).rows
  )

  def measure(effort: Effort, k: int) -> dict[int, float]:
    nearest = functools.partial(find_nearest, searcher, effort)
    rows = np.asarray(exact.search(nearest, size, width, queries, k).rows)
    return {
      d: exact.measure_recall(rows[:, :d], truth[:, :d])
      for d in depths
      if d <= k
    }

  if settings is not None:
    used |= tuner.tune(
      tuner.Tree(size, leaves, size * (2 if settings.soar else 1)),
      # The best 10 of 100 are the 10 best: one search measures all depths.
      lambda *pair: measure(lambda _: pair, min(depths[-1], pair[1])),
      settings.recall,
      leaves=settings.leaves_to_search,
      reorder=settings.reorder,
    )
  recalls = {}
  for k in tuner.RECALL_DEPTHS:  # as a user will search
    depth = min(k, size)
    effort = functools.partial(choose_effort, used, size)
    recalls[f"recall_at_{k}"] = measure(effort, depth)[depth]
  return {"settings": used} | recalls


def _write(searcher: Any, folder: epath.Path) -> None:
  folder.mkdir()
  try:
    # With absolute paths, the index could be neither moved nor renamed.
    searcher.serialize(os.fspath(folder), relative_path=True)
  except RuntimeError as error:
    # Native code says "I/O error" for any cause: almost always a full disk.
    if "I/O error" not in str(error):
      raise
    raise errors.DiskFull(f"{folder}: could not be written") from error


def load(folder: epath.Path) -> Any:
  """Loads a searcher from files that were checked before.

  ScaNN's own `load_searcher` is unsafe: it unpickles a scann_docids.pkl beside
  the index, and so runs whatever someone put there.

  Raises:
    ValueError: the ScaNN installed here cannot read them.
  """
  scann = import_scann()
  assets = (folder / "scann_assets.pbtxt").read_text()
  try:
    native = scann.scann_pybind.ScannNumpy(os.fspath(folder), assets)
  except RuntimeError as error:
    raise ValueError(
      f"{folder}: must be readable by scann as installed; got {error}. {MEND}"
    ) from error
  return scann.ScannSearcher(native)


def choose_effort(
  settings: Mapping[str, Any], size: int, k: int
) -> tuple[int, int] | None:
  """Leaves to search and rows to score again for k answers; None = no tree.

  Args:
    settings: the manifest's settings.
    size: rows of the index.
    k: answers per query.
  """
  return (
    tuner.choose_setting(settings, size, k) if "leaves" in settings else None
  )


def find_nearest(
  searcher: Any, effort: Effort, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Finds rows and scores [Q,k], best first, equal scores by row.

  Places that the search did not fill have row -1 and score -inf.
  """
  chosen, knobs = effort(k), {}
  if chosen:
    leaves, reorder = chosen
    knobs = {
      "leaves_to_search": leaves,
      "pre_reorder_num_neighbors": reorder,
    }
  rows, scores = searcher.search_batched_parallel(
    queries,
    k,
    batch_size=max(1, -(-len(queries) // (os.cpu_count() or 1))),
    **knobs,
  )
  # ScaNN returns row 0 with score NaN for places that it did not fill.
  reached = np.isfinite(scores)
  scores = np.where(reached, scores, -np.inf).astype(np.float32)
  rows = np.where(reached, rows.astype(np.int64), -1)
  last = np.where(reached, rows, np.iinfo(np.int64).max)
  order = np.lexsort((last, -scores), axis=1)
  return (
    np.take_along_axis(rows, order, axis=1),
    np.take_along_axis(scores, order, axis=1),
  )
