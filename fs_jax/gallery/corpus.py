"""A gallery's Fast vectors on disk, and the rules that they obey.

    vectors/  manifest.json  ids.txt  vectors-00000-of-00004.npy

`ids.txt` has one id a line, in row order.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from fs_jax import types
from fs_jax.machine import commands, files, provenance
from fs_jax.machine import manifest as manifests
from fs_jax.runs import contract as contracts

KIND = "vectors"  # the manifest's kind
IDS = "ids.txt"
SHARD_BYTES = 1 << 28
TOLERANCE = 1e-3  # of a vector's length; float16 round trips stay within it
_BLOCK = 1 << 16  # rows checked at a time, to bound memory


def save(
  folder: epath.PathLike,
  corpus: types.Corpus,
  contract: provenance.Contract,
  *,
  shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
  """Writes the folder whole, or leaves the old one; returns its manifest.

  Args:
    folder: the folder to make or replace.
    corpus: vectors and ids.
    contract: the contract's parts; `items` is added.
    shard_bytes: the size of a file of vectors, at most (but one row at least).

  Raises:
    ValueError: as `validate`.
    errors.DiskFull: no space is left.
  """
  validate(corpus)
  with manifests.folder(folder, KIND) as temporary:
    write_ids(temporary, corpus.ids)
    write_vectors(temporary, corpus.vectors, shard_bytes=shard_bytes)
    return manifests.write_manifest(
      temporary,
      {
        "kind": KIND,
        "dtype": "float32",
        "shape": list(corpus.vectors.shape),
        "count": len(corpus.ids),
        "contract": {**contract, "items": contracts.items(corpus.ids)},
      },
    )


def load(
  folder: epath.PathLike,
  expected: provenance.Contract | None = None,
  *,
  hashes: bool = True,
  mend: str = "",
) -> types.Corpus:
  """Reads and checks what `save` wrote.

  Args:
    folder: the corpus's folder.
    expected: parts of the contract that must agree, such as the model's `fast`.
    hashes: False checks the sizes of files, not their contents.
    mend: the fix that errors suggest; if "", to encode again.

  Raises:
    FileNotFoundError: no such corpus.
    ValueError: damaged, of another contract, or refused by `validate`.
  """
  mend = mend or f"encode the gallery again: {commands.program('encode')}"
  path, manifest = provenance.open_folder(
    folder, KIND, expected, hashes=hashes, copy=False, mend=mend
  )
  corpus = types.Corpus(
    read_vectors(path, manifest["shape"]), read_ids(path, manifest)
  )
  validate(corpus)
  return corpus


def read_contract(folder: epath.PathLike) -> dict[str, provenance.Part]:
  """Reads a corpus's contract, without its vectors."""
  return manifests.read_manifest(folder, KIND, hashes=False)["contract"]


def validate(corpus: types.Corpus) -> None:
  """Refuses vectors that would be searched wrongly or crash native code.

  Raises:
    ValueError: vectors that are not float32 [C,E] with C, E >= 1; a row that is
      not finite or not of unit length; ids that are too few, duplicated, or not
      one line of text.
  """
  vectors, ids = corpus.vectors, corpus.ids
  if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
    got = getattr(vectors, "dtype", type(vectors).__name__)
    raise ValueError(
      f"vectors: must be a NumPy array of float32; got {got}. convert them"
    )
  if vectors.ndim != 2 or 0 in vectors.shape:
    raise ValueError(
      f"vectors: must be [C,E] with at least one row; got shape "
      f"{vectors.shape}. encode a gallery that is not empty"
    )
  if len(ids) != len(vectors):
    raise ValueError(
      f"ids: one for each of {len(vectors)} vectors; got {len(ids)}. "
      f"pass as many ids as vectors"
    )
  check_ids(ids)
  blocks = range(0, len(vectors), _BLOCK)
  lengths = np.concatenate(
    [np.linalg.norm(vectors[i : i + _BLOCK], axis=1) for i in blocks]
  )
  # Negated so that NaN, which compares false with everything, counts as bad.
  bad = np.flatnonzero(~(np.abs(lengths - 1) <= TOLERANCE))
  if bad.size:
    at = int(bad[0])
    finite = np.isfinite(vectors[at]).all()
    rule = "must have unit length" if finite else "must be finite"
    got = f"length {lengths[at]:.6g}" if finite else "NaN or infinity"
    raise ValueError(
      f"vectors: every row {rule}; got {got} in row {at}, id {ids[at]!r} "
      f"({bad.size} such rows). look at that item, then encode again"
    )


def write_ids(folder: epath.PathLike, ids: Iterable[str]) -> None:
  """Writes `ids.txt`, one id per line."""
  text = "".join(f"{i}\n" for i in ids)
  files.write_text(epath.Path(folder) / IDS, text)


def read_ids(
  folder: epath.PathLike, manifest: Mapping[str, Any]
) -> tuple[str, ...]:
  """Reads `ids.txt` and checks it against the manifest.

  Raises:
    ValueError: not the ids that the contract was made from.
  """
  path = epath.Path(folder) / IDS
  ids = tuple(path.read_bytes().decode().split("\n")[:-1])
  provenance.check(
    "items",
    manifest["contract"]["items"],
    contracts.items(ids),
    ours_name="the manifest",
    theirs_name=str(path),
    mend=f"make it again: {manifests.how_to_make(manifest['kind'])}",
  )
  return ids


def write_vectors(
  folder: epath.PathLike,
  vectors: np.ndarray,
  *,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes float32 [C,E] as `vectors-00000-of-0000N.npy`, little-endian."""
  rows = max(1, shard_bytes // (4 * vectors.shape[1]))
  shards = -(-len(vectors) // rows)
  for shard in range(shards):
    block = vectors[shard * rows : (shard + 1) * rows]
    block = block.astype("<f4", copy=False)
    name = f"vectors-{shard:05d}-of-{shards:05d}.npy"
    files.write_array(epath.Path(folder) / name, block)


def read_vectors(folder: epath.PathLike, shape: Sequence[int]) -> np.ndarray:
  """Reads the shards of a folder in order: float32 [C,E].

  Raises:
    ValueError: shards that do not add up to `shape`.
  """
  folder = epath.Path(folder)
  vectors: np.ndarray = np.empty(tuple(shape), np.float32)
  row = 0
  for path in sorted(folder.glob("vectors-*.npy")):
    with path.open("rb") as file:
      block = np.load(file, allow_pickle=False)
    fits = block.dtype == np.float32 and block.shape[1:] == vectors.shape[1:]
    if not fits or row + len(block) > len(vectors):
      raise ValueError(
        f"{path}: must continue float32 {list(shape)} at row {row}; got "
        f"{block.dtype} {list(block.shape)}. encode the gallery again"
      )
    vectors[row : row + len(block)] = block
    row += len(block)
  if row != len(vectors):
    raise ValueError(
      f"{folder}: its shards must hold {len(vectors)} rows; got {row}. "
      f"encode the gallery again"
    )
  return vectors


def check_ids(ids: Sequence[str]) -> None:
  """Refuses ids that are not lines of text, or occur twice.

  Raises:
    ValueError: names the id and its row.
  """
  seen: dict[str, int] = {}
  for row, name in enumerate(ids):
    wrong = ""
    if not isinstance(name, str) or not name:
      wrong = "a string that is not empty"
    elif "\n" in name or "\r" in name:
      wrong = "one line"
    elif not name.isascii() and name.encode(errors="replace").decode() != name:
      wrong = "Unicode"
    elif name in seen:
      wrong = f"different from that of row {seen[name]}"
    if wrong:
      raise ValueError(
        f"ids: each must be {wrong}; got {name!r} in row {row}. rename it"
      )
    seen[name] = row
