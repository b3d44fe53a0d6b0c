"""What people see of each visual: path, captions, a thumbnail.

    items/  manifest.json  items.sqlite

Rows are those of the vectors and memories beside it. An answer needs nothing
else, so a gallery with its items is searched without the data that it was
encoded from.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple
from urllib import parse

from etils import epath

from fs_jax.data import sources
from fs_jax.machine import manifest as manifests
from fs_jax.machine import provenance
from fs_jax.runs import contract

KIND = "items"  # the manifest's kind
_FILE = "items.sqlite"
_TABLE = """CREATE TABLE items (
  row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path TEXT NOT NULL,
  captions TEXT NOT NULL, thumbnail BLOB)"""
_BLOCK = 1000  # rows written at once


class Item(NamedTuple):
  """A visual, as people see it."""

  id: str
  path: str  # the visual's file, below `root`; "" if it has none of its own
  captions: tuple[str, ...]

  @property
  def caption(self) -> str:
    """The first caption, or "" if there is none."""
    return self.captions[0] if self.captions else ""


class Items:
  """Items by row, read as they are asked for; safe in several threads.

  Args:
    folder: the folder that `write` wrote.
    expected: parts of the contract that must agree, such as `items`.
    root: the data's folder, which is put before every path; "" leaves paths
      relative.
    mend: the fix that errors suggest.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: damaged, or of another contract.
  """

  def __init__(
    self,
    folder: epath.PathLike,
    expected: provenance.Contract | None = None,
    *,
    root: str = "",
    mend: str = "",
  ):
    self._root = root
    path, manifest = provenance.open_folder(folder, KIND, expected, mend=mend)
    self.contract: provenance.Contract = manifest["contract"]
    self.attribution: str = manifest["attribution"]
    self._count: int = manifest["count"]
    self._lock = threading.Lock()
    self._file = sqlite3.connect(
      f"file:{parse.quote(os.fspath(path / _FILE))}?mode=ro&immutable=1",
      uri=True,
      check_same_thread=False,
    )

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, row: int) -> Item:
    name, path, captions = self._read("id, path, captions", row)
    path = os.path.join(self._root, path) if path else ""
    return Item(name, path, tuple(json.loads(captions)))

  def __iter__(self) -> Iterator[Item]:
    return (self[row] for row in range(len(self)))

  def thumbnail(self, row: int) -> bytes | None:
    """The encoded thumbnail of a row, or None if none were written."""
    return self._read("thumbnail", row)[0]

  def _read(self, columns: str, row: int) -> tuple:
    with self._lock:
      values = self._file.execute(
        f"SELECT {columns} FROM items WHERE row = ?", (int(row),)
      ).fetchone()
    if values is None:
      raise IndexError(f"row: must be in 0..{len(self) - 1}; got {row}")
    return values


def make_contract(
  source: sources.Source, split: Mapping[str, object] | None = None
) -> dict[str, provenance.Part]:
  """The contract of a source's items.

  Args:
    source: the gallery's visuals.
    split: the contract's part `split`, if known already.
  """
  return {
    "split": dict(split)
    if split is not None
    else contract.split(source.origin, source.contents()),
    "items": contract.items(source.ids),
    "captions": contract.captions(source.all_captions),
  }


def write(
  folder: epath.PathLike,
  source: sources.Source,
  parts: provenance.Contract,
  *,
  thumbnail: Callable[[int], bytes] | None = None,
) -> None:
  """Writes the folder whole, or leaves the old one.

  Args:
    folder: the folder to make or replace.
    source: the gallery's visuals.
    parts: the contract, as `make_contract` returns it.
    thumbnail: row -> an encoded picture; None writes none.
  """
  paths = source.paths or ("",) * len(source)
  with manifests.folder(folder, KIND) as temporary:
    file = sqlite3.connect(os.fspath(temporary / _FILE))
    try:
      file.execute(_TABLE)
      for start in range(0, len(source), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(source)))
        file.executemany(
          "INSERT INTO items VALUES (?, ?, ?, ?, ?)",
          [
            (
              row,
              source.ids[row],
              paths[row],
              json.dumps(source.captions(row), ensure_ascii=False),
              thumbnail(row) if thumbnail else None,
            )
            for row in rows
          ],
        )
      file.commit()
    finally:
      file.close()
    manifests.write_manifest(
      temporary,
      {
        "kind": KIND,
        "count": len(source),
        "attribution": source.attribution,
        "thumbnails": thumbnail is not None,
        "contract": parts,
      },
    )
