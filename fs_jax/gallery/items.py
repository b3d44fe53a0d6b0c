"""What a person is shown of each visual: path, captions, a small picture.

    items/  manifest.json  items.sqlite

Rows are those of the vectors and memories beside it. An answer needs nothing
else, so a gallery with its items is searched without the data it was made of.
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
  """A visual, as it is shown."""

  id: str
  path: str  # of its file, below `root`; "" where it has none of its own
  captions: tuple[str, ...]

  @property
  def caption(self) -> str:
    """The first one; "" where there is none."""
    return self.captions[0] if self.captions else ""


class Items:
  """Items by row, read as they are asked for; safe in several threads.

  Args:
    folder: that `write` wrote.
    expected: parts of the contract that must agree, such as `items`.
    root: where the data lie now, before every path; "" leaves them relative.
    mend: said where the contract does not agree.

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
    """The encoded picture of a row, where the gallery was packed with them."""
    return self._read("thumbnail", row)[0]

  def _read(self, columns: str, row: int) -> tuple:
    with self._lock:
      found = self._file.execute(
        f"SELECT {columns} FROM items WHERE row = ?", (int(row),)
      ).fetchone()
    if found is None:
      raise IndexError(f"row: must be in 0..{len(self) - 1}; got {row}")
    return found


def contract_of(
  source: sources.Source, split: Mapping[str, object] | None = None
) -> dict[str, provenance.Part]:
  """What the items of a source follow from.

  Args:
    source: the gallery.
    split: its part of the contract, where that is known already.
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
  """Writes the folder whole, or leaves what was there.

  Args:
    folder: to make or replace.
    source: the gallery.
    parts: of the contract, as `contract_of` gives them.
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
