"""Exact (JAX) and ScaNN search behind one interface.

index/  manifest.json  ids.txt  scann/...            (backend scann)
                                vectors-*.npy        (backend exact)
"""

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath

from fs_jax import types
from fs_jax.gallery import corpus as corpora
from fs_jax.gallery import exact, scann, tuner
from fs_jax.machine import manifest as manifests
from fs_jax.machine import provenance
from fs_jax.runs import contract as contracts

KIND = "index"  # the manifest's kind
_SAMPLE = 512  # queries that recall is measured on
_NOISE = 0.75  # length of the noise that turns a vector into a query
_NO_SCANN = "scann is not installed here: every search compares all vectors"


def build(
  corpus: types.Corpus,
  folder: epath.PathLike,
  contract: provenance.Contract,
  *,
  kind: Literal["auto", "exact", "scann"] = "auto",
  settings: scann.Settings | None = None,
  queries: np.ndarray | None = None,
) -> dict[str, Any]:
  """Writes the folder whole, or leaves the old one; returns its manifest.

  The index is read back and its recall measured before the folder takes its
  name. An index that misses its target warns, and its manifest says so
  (`warning`).

  Args:
    corpus: vectors and ids, which are validated first.
    folder: the folder to make or replace.
    contract: the corpus's contract; `items` is added.
    kind: "auto" is ScaNN if installed, else exact with a warning.
    settings: ScaNN's settings; the defaults if None.
    queries: float32 [Q,E] on which recall is measured. If None, vectors of the
      corpus with noise, which overstates recall: real queries lie further away.

  Raises:
    ValueError: a corpus, kind or setting that does not fit; ScaNN asked for but
      not installed.
    errors.DiskFull: no space is left.
  """
  corpora.validate(corpus)
  settings = settings or scann.Settings()
  backend, warning = _backend(kind)
  tree = backend == "scann" and scann.uses_tree(settings, corpus.vectors)
  if tree:
    scann.check_settings(settings, len(corpus.ids))
  parts = {**contract, "items": contracts.items(corpus.ids)}
  # Compared only here: an exact index is its own reference.
  queries, measured_on = _sample(corpus.vectors, queries)
  fields: dict[str, Any] = {
    "kind": KIND,
    "backend": backend,
    "dtype": "float32",
    "shape": list(corpus.vectors.shape),
    "count": len(corpus.ids),
    "warning": warning,
    **{f"recall_at_{k}": 1.0 for k in tuner.RECALL_DEPTHS},
    "recall_target": settings.recall,
    "recall_queries": len(queries),
    "recall_measured_on": measured_on,
    "settings": {},
    "contract": parts,
  }
  with manifests.folder(folder, KIND) as temporary:
    corpora.write_ids(temporary, corpus.ids)
    if backend == "exact":
      corpora.write_vectors(temporary, corpus.vectors)
    else:
      fields |= scann.build(
        corpus, temporary / "scann", settings if tree else None, queries
      )
      fields["warning"] = _missed(fields)
    return manifests.write_manifest(temporary, fields)


def load(
  folder: epath.PathLike,
  expected: provenance.Contract | None = None,
  *,
  vectors: epath.PathLike | None = None,
  hashes: bool = True,
  mend: str = scann.MEND,
) -> exact.Index:
  """Reads and checks what `build` wrote, wherever it lies now.

  Args:
    folder: the index's folder; one in an object store is copied here first.
    expected: parts of the contract that must agree, such as `fast` and `items`.
    vectors: the folder of the vectors that were indexed. An index of ScaNN is
      replaced by exact search over them where ScaNN is not installed; the
      manifest's warning says so.
    hashes: False checks the sizes of files, not their contents. Only for files
      that you trust: native code reads them as they are.
    mend: the fix that errors suggest.

  Raises:
    FileNotFoundError: no such index.
    ValueError: damaged, of another contract or backend, or of ScaNN, which is
      not installed, and without `vectors`.
  """
  path, manifest = provenance.open_folder(
    folder, KIND, expected, hashes=hashes, mend=mend
  )
  backend, shape = manifest["backend"], manifest["shape"]
  ids = corpora.read_ids(path, manifest)
  if backend == "exact":
    vectors = corpora.read_vectors(path, shape)
    corpora.validate(types.Corpus(vectors, ids))
    loaded = exact.make_index(vectors, ids, manifest["contract"])
    return loaded._replace(manifest=manifest)
  if backend != "scann":
    raise ValueError(
      f"{path}: its backend must be 'exact' or 'scann'; got {backend!r}. "
      f"{scann.MEND}"
    )
  if scann.import_scann() is None:
    if vectors is None:
      raise ValueError(
        f"{path}: an index of ScaNN needs the package scann; got none here. "
        "install it, or build with kind 'exact': "
        f"{manifests.how_to_make(KIND)}"
      )
    return _compare_all(vectors, ids, manifest, mend)
  searcher = scann.load(path / "scann")
  if searcher.size() != len(ids):
    raise ValueError(
      f"{path}: must hold {len(ids)} rows; got {searcher.size()}. {scann.MEND}"
    )
  effort = functools.partial(
    scann.choose_effort, manifest["settings"], len(ids)
  )
  nearest = functools.partial(scann.find_nearest, searcher, effort)
  return exact.Index(
    functools.partial(exact.search, nearest, len(ids), shape[1]),
    "scann",
    len(ids),
    shape[1],
    ids,
    manifest["contract"],
    manifest,
    lambda k: None,  # ScaNN compiles nothing
  )


def _compare_all(
  folder: epath.PathLike,
  ids: Sequence[str],
  manifest: dict[str, Any],
  mend: str,
) -> exact.Index:
  """Exact search over the vectors that an index of ScaNN was built from."""
  corpus = corpora.load(folder, manifest["contract"], mend=mend)
  if tuple(corpus.ids) != tuple(ids):
    raise ValueError(
      f"{folder}: must hold the {len(ids)} vectors of its index, in the same "
      f"order; got {len(corpus.ids)} others. {mend}"
    )
  index = exact.make_index(corpus.vectors, ids, manifest["contract"])
  return index._replace(manifest={**manifest, "warning": _NO_SCANN})


def _backend(kind: str) -> tuple[exact.Backend, str]:
  """The backend to build, and a warning if it is a slower substitute."""
  if kind == "exact":
    return "exact", ""
  if kind not in ("auto", "scann"):
    raise ValueError(
      f"kind: must be 'auto', 'exact' or 'scann'; got {kind!r}. "
      "pass one of these"
    )
  if scann.import_scann() is not None:
    return "scann", ""
  if kind == "scann":
    raise ValueError(
      "kind: 'scann' needs the package scann (Linux, Python 3.11 to 3.13); "
      "got none here. install it, or use 'exact'"
    )
  warnings.warn(f"index: {_NO_SCANN}", stacklevel=3)
  return "exact", _NO_SCANN


def _sample(
  vectors: np.ndarray, queries: np.ndarray | None
) -> tuple[np.ndarray, str]:
  """At most 512 queries to measure recall on, and a description of them."""
  random = np.random.default_rng(0)
  size, width = vectors.shape
  if queries is not None:
    queries = exact.check_queries(queries, width)
    if len(queries) > _SAMPLE:
      picked = random.choice(len(queries), _SAMPLE, replace=False)
      queries = queries[np.sort(picked)]
    return queries, "given queries"
  picked = np.sort(random.choice(size, min(size, _SAMPLE), replace=False))
  noise = random.normal(
    scale=_NOISE / math.sqrt(width), size=(len(picked), width)
  )
  noisy = vectors[picked] + noise.astype(np.float32)
  noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
  return noisy, "vectors of the corpus with noise"


def _missed(manifest: Mapping[str, Any]) -> str:
  """A warning if recall is below its target, else "".

  An index without a tree compares all vectors, so it can only confuse equal
  ones and needs no warning.
  """
  if "leaves" not in manifest["settings"]:
    return ""
  got = {k: manifest[f"recall_at_{k}"] for k in tuner.RECALL_DEPTHS}
  target = manifest["recall_target"]
  if min(got.values()) >= target:
    return ""
  recalls = " and ".join(f"{recall:.4f} at {k}" for k, recall in got.items())
  warning = (
    f"recall against exact search: must reach its target of {target:g}; got "
    f"{recalls}. give more leaves_to_search or reorder, leave them to be tuned "
    f"(0), or lower recall"
  )
  warnings.warn(f"index: {warning}", stacklevel=3)
  return warning
