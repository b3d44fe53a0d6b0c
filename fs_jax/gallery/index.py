"""Exact (JAX) and ScaNN search behind one face.

    index/  manifest.json  ids.txt  scann/...            (backend scann)
                                    vectors-*.npy        (backend exact)

ScaNN's native code ends the process on damaged files, vectors that are not
finite and some shapes, and unpickles ids that it finds beside an index. So
everything is checked before it, and ids never pass through it.
"""

import dataclasses
import functools
import importlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath

from fs_jax import types
from fs_jax.gallery import corpus as corpora
from fs_jax.gallery import exact as exact_search
from fs_jax.gallery import tuner
from fs_jax.machine import errors, files, provenance
from fs_jax.runs import contract as contracts

Backend = Literal["exact", "scann"]
MEND = f"build the index again: {files.MAKES['index']}"
# Leaves to search and rows to score again for k answers; None = no tree.
Given = Callable[[int], tuple[int, int] | None]
_SAMPLE = 512  # queries that recall is measured on
_NOISE = 0.75  # length of what is added to a vector to make a query of it


class Index(NamedTuple):
  """What answers queries; whoever searches cannot know how.

  `search(queries, k)`: float32 [Q,E], finite, and k >= 1 -> Candidates of NumPy
  arrays [Q,k], best first; rows of -1 with scores of -inf fill up a short row.
  Raises ValueError for anything else.
  """

  search: Callable[[types.Array, int], types.Candidates]
  kind: Backend
  size: int  # C
  width: int  # E
  ids: tuple[str, ...]  # C of them; () where none were given
  contract: dict[str, provenance.Part]
  manifest: dict[str, Any]  # of the folder; {} without one
  # Compiles all that `search` needs for up to k answers to any queries.
  warm: Callable[[int], None]


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


def exact(
  vectors: np.ndarray,
  ids: Sequence[str] = (),
  contract: Mapping[str, provenance.Part] | None = None,
  *,
  score_bytes: int = exact_search.SCORE_BYTES,
) -> Index:
  """Search by all dot products, on the default device; equal scores by row.

  Args:
    vectors: float32 [C,E].
    ids: C of them, or none.
    contract: parts that describe the vectors.
    score_bytes: of the scores held at once.
  """
  size, width = vectors.shape
  placed = exact_search.place(vectors)
  nearest = functools.partial(
    exact_search.nearest, placed, score_bytes=score_bytes
  )
  return Index(
    functools.partial(_search, nearest, size, width),
    "exact",
    size,
    width,
    tuple(ids),
    dict(contract or {}),
    {},
    functools.partial(exact_search.warm, placed, score_bytes=score_bytes),
  )


def build(
  corpus: types.Corpus,
  folder: epath.PathLike,
  contract: provenance.Contract,
  *,
  kind: Literal["auto", "exact", "scann"] = "auto",
  settings: Settings | None = None,
  queries: np.ndarray | None = None,
) -> dict[str, Any]:
  """Writes the folder whole, or leaves what was there; returns its manifest.

  The index is read back and its recall measured before it takes its name. One
  that misses its target warns, and says so in its manifest (`warning`).

  Args:
    corpus: checked by `corpus.validate` first.
    folder: to make or replace.
    contract: that of the corpus; `items` is added.
    kind: "auto" is ScaNN where it is installed, else exact with a warning.
    settings: of ScaNN; the defaults if None.
    queries: float32 [Q,E] that recall is measured on; if None, vectors of the
      corpus with noise added, which flatters: real queries lie further off.

  Raises:
    ValueError: a corpus, kind or setting that does not fit; ScaNN asked for but
      not installed.
    files.DiskFull: no space is left.
  """
  corpora.validate(corpus)
  settings = settings or Settings()
  backend, warning = _backend(kind)
  tree = backend == "scann" and _is_tree(settings, corpus.vectors)
  if tree:
    _check_settings(settings, len(corpus.ids))
  parts = {**contract, "items": contracts.items(corpus.ids)}
  # Compared only here: an exact index is its own reference.
  queries, measured_on = _sample(corpus.vectors, queries)
  fields: dict[str, Any] = {
    "kind": "index",
    "backend": backend,
    "dtype": "float32",
    "shape": list(corpus.vectors.shape),
    "count": len(corpus.ids),
    "warning": warning,
    **{f"recall_at_{k}": 1.0 for k in tuner.AT},
    "recall_target": settings.recall,
    "recall_queries": len(queries),
    "recall_measured_on": measured_on,
    "settings": {},
    "contract": parts,
  }
  with files.folder(folder, "index") as temporary:
    corpora.write_ids(temporary, corpus.ids)
    if backend == "exact":
      corpora.write_vectors(temporary, corpus.vectors)
    else:
      fields |= _build_scann(
        corpus, temporary / "scann", settings if tree else None, queries
      )
      fields["warning"] = _missed(fields)
    return files.write_manifest(temporary, fields)


def load(
  folder: epath.PathLike,
  expected: Mapping[str, provenance.Part] | None = None,
  *,
  hashes: bool = True,
  mend: str = MEND,
) -> Index:
  """Reads and checks what `build` wrote, wherever it lies now.

  Args:
    folder: of an index; one on an object store is copied here first.
    expected: parts of the contract that must agree: `fast`, `items`.
    hashes: False checks sizes, not contents: only for files that you trust to
      be whole, native code gets them as they are.
    mend: said where the contract differs.

  Raises:
    FileNotFoundError: no such index.
    ValueError: damaged, of another contract or backend, or of ScaNN where that
      is not installed.
  """
  path = files.local(folder)
  manifest = files.read_manifest(path, "index", hashes=hashes, mend=mend)
  provenance.check_all(
    expected,
    manifest["contract"],
    ours_name="what is asked for",
    theirs_name=f"index {epath.Path(folder)}",
    mend=mend,
  )
  backend, shape = manifest["backend"], manifest["shape"]
  ids = corpora.read_ids(path, manifest)
  if backend == "exact":
    vectors = corpora.read_vectors(path, shape)
    corpora.validate(types.Corpus(vectors, ids))
    found = exact(vectors, ids, manifest["contract"])
    return found._replace(manifest=manifest)
  if backend != "scann":
    raise ValueError(
      f"{path}: its backend must be 'exact' or 'scann'; got {backend!r}. {MEND}"
    )
  if _scann() is None:
    raise ValueError(
      f"{path}: an index of ScaNN needs the package scann; got none here. "
      f"install it, or build with kind 'exact': {files.MAKES['index']}"
    )
  searcher = _load_scann(path / "scann")
  if searcher.size() != len(ids):
    raise ValueError(
      f"{path}: must hold {len(ids)} rows; got {searcher.size()}. {MEND}"
    )
  given = functools.partial(_given, manifest["settings"], len(ids))
  nearest = functools.partial(_scann_nearest, searcher, given)
  return Index(
    functools.partial(_search, nearest, len(ids), shape[1]),
    "scann",
    len(ids),
    shape[1],
    ids,
    manifest["contract"],
    manifest,
    lambda k: None,  # nothing of ScaNN is compiled
  )


def recall(found: np.ndarray, truth: np.ndarray) -> float:
  """Share of the true neighbours that were found: rows [Q,k] both."""
  hits = (found[:, :, None] == truth[:, None, :]).any(axis=1)
  return float(hits.mean())


def _search(
  nearest: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]],
  size: int,
  width: int,
  queries: types.Array,
  k: int,
) -> types.Candidates:
  """Checks queries, asks for as many as there are, fills up to k."""
  checked = _check_queries(queries, width)
  if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
    raise ValueError(f"k: must be an integer >= 1; got {k!r}. change it")
  rows, scores = nearest(checked, min(int(k), size))
  missing = ((0, 0), (0, int(k) - rows.shape[1]))
  return types.Candidates(
    np.pad(rows.astype(np.int32), missing, constant_values=-1),
    np.pad(scores, missing, constant_values=-np.inf),
  )


def _check_queries(given: types.Array, width: int) -> np.ndarray:
  queries: np.ndarray = np.asarray(given)
  if queries.ndim != 2 or queries.shape[1] != width:
    raise ValueError(
      f"queries: must be [Q,{width}]; got shape {queries.shape}. encode them "
      f"with the model of the index, one row a query"
    )
  if not len(queries):
    raise ValueError(
      "queries: must have at least one row; got none. leave out the search"
    )
  if queries.dtype.kind != "f" and queries.dtype.name != "bfloat16":
    raise ValueError(
      f"queries: must be floating point; got {queries.dtype}. convert them"
    )
  queries = np.ascontiguousarray(queries, np.float32)
  bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
  if bad.size:
    raise ValueError(
      f"queries: must be finite; got NaN or infinity in row {bad[0]} "
      f"({bad.size} such rows). look at that query"
    )
  return queries


@functools.cache
def _scann() -> Any:
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


def _backend(kind: str) -> tuple[Backend, str]:
  """The backend to build, and a warning if it is not what one would want."""
  if kind == "exact":
    return "exact", ""
  if kind not in ("auto", "scann"):
    raise ValueError(
      f"kind: must be 'auto', 'exact' or 'scann'; got {kind!r}. change it"
    )
  if _scann() is not None:
    return "scann", ""
  if kind == "scann":
    raise ValueError(
      "kind: 'scann' needs the package scann (Linux, Python 3.11 to 3.13); "
      "got none here. install it, or use 'exact'"
    )
  warning = "scann is not installed here: every search compares all vectors"
  warnings.warn(f"index: {warning}", stacklevel=3)
  return "exact", warning


def _check_settings(settings: Settings, size: int) -> None:
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


def _is_tree(settings: Settings, vectors: np.ndarray) -> bool:
  # Codes are of two dimensions each, learned from 16 rows or more.
  size, width = vectors.shape
  return size >= max(16, settings.brute_below) and width >= 4


def _sample(
  vectors: np.ndarray, queries: np.ndarray | None
) -> tuple[np.ndarray, str]:
  """Queries to measure recall on [<=512,E], and what they are."""
  random = np.random.default_rng(0)
  size, width = vectors.shape
  if queries is not None:
    queries = _check_queries(queries, width)
    if len(queries) > _SAMPLE:
      picked = random.choice(len(queries), _SAMPLE, replace=False)
      queries = queries[np.sort(picked)]
    return queries, "given queries"
  picked = np.sort(random.choice(size, min(size, _SAMPLE), replace=False))
  noise = random.normal(
    scale=_NOISE / math.sqrt(width), size=(len(picked), width)
  )
  made = vectors[picked] + noise.astype(np.float32)
  made /= np.linalg.norm(made, axis=1, keepdims=True)
  return made, "vectors of the corpus with noise"


def _build_scann(
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
  builder = _scann().builder(corpus.vectors, min(size, 10), "dot_product")
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
  _write_scann(built, folder)
  del built  # what is measured is what was written
  searcher = _load_scann(folder)
  depths = tuner.depths(size)
  truth = np.asarray(exact(corpus.vectors).search(queries, depths[-1]).rows)

  def measure(given: Given, k: int) -> dict[int, float]:
    nearest = functools.partial(_scann_nearest, searcher, given)
    found = np.asarray(_search(nearest, size, width, queries, k).rows)
    return {d: recall(found[:, :d], truth[:, :d]) for d in depths if d <= k}

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
    got = measure(functools.partial(_given, used, size), depth)
    told[f"recall_at_{k}"] = got[depth]
  return {"settings": used} | told


def _missed(manifest: Mapping[str, Any]) -> str:
  """A warning if recall is below its target, else nothing.

  Where all vectors are compared, only equal ones can be mistaken.
  """
  if "leaves" not in manifest["settings"]:
    return ""
  got = {k: manifest[f"recall_at_{k}"] for k in tuner.AT}
  target = manifest["recall_target"]
  if min(got.values()) >= target:
    return ""
  said = " and ".join(f"{recall:.4f} at {k}" for k, recall in got.items())
  warning = (
    f"recall against exact search: must reach its target of {target:g}; got "
    f"{said}. give more leaves_to_search or reorder, leave them to be tuned "
    f"(0), or lower recall"
  )
  warnings.warn(f"index: {warning}", stacklevel=3)
  return warning


def _write_scann(searcher: Any, folder: epath.Path) -> None:
  folder.mkdir()
  try:
    # Relative paths, or the index could not be moved, nor even renamed.
    searcher.serialize(os.fspath(folder), relative_path=True)
  except RuntimeError as error:
    # Native code says "I/O error" whatever the reason: all but always space.
    if "I/O error" not in str(error):
      raise
    raise errors.DiskFull(f"{folder}: could not be written") from error


def _load_scann(folder: epath.Path) -> Any:
  """A searcher from files that were checked.

  Not ScaNN's own `load_searcher`: that unpickles a scann_docids.pkl beside the
  index, and so runs whatever someone put there.
  """
  module = _scann()
  assets = (folder / "scann_assets.pbtxt").read_text()
  try:
    native = module.scann_pybind.ScannNumpy(os.fspath(folder), assets)
  except RuntimeError as error:
    raise ValueError(
      f"{folder}: must be readable by scann as installed; got {error}. {MEND}"
    ) from error
  return module.ScannSearcher(native)


def _given(
  settings: Mapping[str, Any], size: int, k: int
) -> tuple[int, int] | None:
  return tuner.setting(settings, size, k) if "leaves" in settings else None


def _scann_nearest(
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
