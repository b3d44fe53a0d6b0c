"""Folders and records that say what they hold and what they were made from.

A folder of results holds `manifest.json`, written last: kind, contract, counts,
and the size and SHA-256 of every other file. Without it the folder counts as
absent. A record is such a result in one JSON file. Neither is written without
the contract that says what it was made from; `provenance` compares contracts.
The other fields belong to the module that owns the kind.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from fs_jax.machine import commands, files

SCHEMA = 1
MANIFEST = "manifest.json"
_MAKERS = {  # kind of folder -> the program that makes it
  "vectors": "encode",
  "memories": "encode",
  "items": "encode",
  "index": "export_index",
}


@contextlib.contextmanager
def folder(path: epath.PathLike, kind: str) -> Iterator[epath.Path]:
  """Yields a temporary folder that is renamed to `path` when the block ends.

  Only an older version is replaced, at the very end: an empty folder, or one
  whose manifest names the same kind. On an error the temporary folder is
  removed and the older version stays.

  Raises:
    ValueError: `path` holds something else.
    DiskFull: no space is left.
  """
  path = epath.Path(path)
  if path.exists() and (other := _other_kind(path, kind)):
    raise ValueError(
      f"{path}: only an empty folder or another {kind} is replaced; got "
      f"{other}. choose another folder or move it away"
    )
  if files.is_remote(path):
    with (
      tempfile.TemporaryDirectory() as temporary,
      files.explain_full_disk(path),
    ):
      yield epath.Path(temporary)
      _upload(epath.Path(temporary), path)
    return
  temporary = files.temporary_name(path)
  with files.explain_full_disk(path):
    try:
      temporary.mkdir(parents=True)
      yield temporary
      for name in _names(temporary, hidden=True):
        files.sync(temporary / name)
      _swap(temporary, path)
    except BaseException:
      shutil.rmtree(temporary, ignore_errors=True)
      raise


def local_copy(path: epath.PathLike) -> epath.Path:
  """The folder itself, or a copy on this disk for memory maps.

  Copies stay in ~/.cache/fs_jax, keyed by path and manifest.
  """
  path = epath.Path(path)
  if not files.is_remote(path):
    return path
  key = hashlib.sha256(os.fspath(path).encode() + _manifest_text(path).encode())
  copy = files.cache_folder() / key.hexdigest()[:32]
  if not (copy / MANIFEST).exists():
    with folder(copy, json.loads(_manifest_text(path))["kind"]) as temporary:
      for name in [*json.loads(_manifest_text(path))["files"], MANIFEST]:
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).copy(temporary / name)
  return copy


def how_to_make(kind: str) -> str:
  """The command that makes a folder of a kind."""
  maker = _MAKERS.get(kind)
  return commands.program(maker) if maker else "run what made it"


def write_manifest(
  path: epath.PathLike, fields: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes the manifest, which lists every file; returns it. Call it last.

  Args:
    path: a local folder.
    fields: JSON values; `kind` and `contract` are required, `schema` and
      `files` are added.

  Raises:
    ValueError: no contract.
  """
  path = epath.Path(path)
  _require_contract(path, fields.get("contract"))
  listed = {
    name: {"bytes": _size(path / name), "sha256": files.sha256(path / name)}
    for name in _names(path)
  }
  manifest = {
    "schema": SCHEMA,
    "kind": fields["kind"],
    **fields,
    "files": listed,
  }
  files.write_json(path / MANIFEST, manifest)
  return manifest


def write_record(
  path: epath.PathLike,
  kind: str,
  contract: Mapping[str, Any],
  values: Mapping[str, Any],
) -> None:
  """Writes a result in one JSON file, with what it was made from.

  Args:
    path: the file.
    kind: "weights", "step", "report", ...
    contract: the parts that `values` follow from.
    values: JSON values; no key is schema, kind or contract.

  Raises:
    ValueError: no contract.
  """
  _require_contract(path, contract)
  head = {"schema": SCHEMA, "kind": kind, "contract": dict(contract)}
  files.write_json(path, {**head, **values})


def read_record(
  path: epath.PathLike, kind: str, *, mend: str
) -> dict[str, Any]:
  """Reads what `write_record` wrote; the contract is under its own key.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not JSON, or JSON of another kind or schema.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"{path}: must exist; got no such file. {mend}")
  try:
    values = json.loads(path.read_text())
    head = values.get("schema"), values.get("kind")
    if head == (SCHEMA, kind) and not isinstance(values["contract"], dict):
      raise TypeError("contract is no object")
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: must be JSON that this program wrote; got {error!r}. {mend}"
    ) from None
  if head != (SCHEMA, kind):
    raise ValueError(
      f"{path}: must be of schema {SCHEMA} and kind {kind!r}; got {head[0]!r} "
      f"and {head[1]!r}. {mend}"
    )
  return values


def _require_contract(path: epath.PathLike, contract: object) -> None:
  if not contract:
    raise ValueError(
      f"{path}: a result must say what it was made from; got no contract. pass "
      "contract={part: {field: value}}"
    )


def read_manifest(
  path: epath.PathLike, kind: str, *, hashes: bool = True, mend: str = ""
) -> dict[str, Any]:
  """Reads a folder's manifest and checks that its files are unchanged.

  Args:
    path: the folder.
    kind: "vectors", "memories", "index", ...
    hashes: False checks names and sizes only: for folders too large to read.
    mend: what errors tell the user to do; "" = make the folder again.

  Raises:
    FileNotFoundError: no such folder, or an unfinished one.
    ValueError: another schema or kind, or a file that is missing, not listed,
      of another length or content.
  """
  path = epath.Path(path)
  again = mend or f"make it again: {how_to_make(kind)}"
  if not (path / MANIFEST).exists():
    raise FileNotFoundError(
      f"{path}: a finished {kind} has a {MANIFEST}; got none. {again}"
    )
  try:
    manifest = json.loads(_manifest_text(path))
    schema, files = manifest.get("schema"), manifest.get("files")
    if schema == SCHEMA:
      wanted = {n: (int(f["bytes"]), f["sha256"]) for n, f in files.items()}
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path / MANIFEST}: must be JSON that this program wrote; got "
      f"{error!r}. {again}"
    ) from None
  if schema != SCHEMA:
    raise ValueError(
      f"{path}: its schema must be {SCHEMA}; got {schema!r}. read it with the "
      f"version that wrote it, or {again}"
    )
  if manifest.get("kind") != kind:
    raise ValueError(
      f"{path}: its kind must be {kind!r}; got {manifest.get('kind')!r}. "
      f"give the folder of a {kind}"
    )
  present = _names(path)
  for name in sorted(set(present) - set(wanted)):
    raise ValueError(
      f"{path}: holds only files that its manifest lists; got {name!r}. "
      f"move it away, or {again}"
    )
  for name, (size, digest) in wanted.items():
    digest = digest if hashes else ""
    _check_file(path, name, name in present, size, digest, mend)
  return manifest


def _check_file(
  path: epath.Path, name: str, present: bool, size: int, digest: str, mend: str
) -> None:
  again = "copy the folder again from where it was made, or "
  again += mend or "make it again"
  if not present:
    raise ValueError(f"{path}: {name!r} is listed; got no such file. {again}")
  got = _size(path / name)
  if got != size:
    raise ValueError(
      f"{path}: {name!r} must have {size} bytes; got {got}. {again}"
    )
  if digest and (other := files.sha256(path / name)) != digest:
    raise ValueError(
      f"{path}: {name!r} must have SHA-256 {digest[:12]}...; got "
      f"{other[:12]}...: it was changed. {again}"
    )


def _manifest_text(path: epath.Path) -> str:
  return (path / MANIFEST).read_text()


def _size(path: epath.Path) -> int:
  return path.stat().length


def _names(path: epath.Path, *, hidden: bool = False) -> list[str]:
  """Relative names of the files below a folder, without its own manifest."""
  return sorted(name for name in _walk(path, hidden) if name != MANIFEST)


def _walk(path: epath.Path, hidden: bool) -> Iterator[str]:
  for child in path.iterdir():
    if child.name.startswith(".") and not hidden:
      continue  # left behind by file managers and network disks
    if child.is_dir():
      yield from (f"{child.name}/{name}" for name in _walk(child, hidden))
    else:
      yield child.name


def _other_kind(path: epath.Path, kind: str) -> str:
  """Describes what is at `path` and must not be lost; "" if nothing is."""
  if not path.is_dir():
    return "a file"
  if not (path / MANIFEST).exists():
    return "something else" if any(path.iterdir()) else ""
  try:
    existing = json.loads(_manifest_text(path)).get("kind")
  except (ValueError, AttributeError):
    return ""  # cut short by an earlier version's crash
  return "" if existing in (kind, None) else f"a folder of kind {existing!r}"


def _swap(new: epath.Path, path: epath.Path) -> None:
  """Renames `new` to `path`: in two moves, as `path` may be a full folder."""
  if not path.exists():
    os.rename(new, path)
  else:
    old = files.temporary_name(path)
    os.rename(path, old)
    try:
      os.rename(new, path)
    except BaseException:
      os.rename(old, path)
      raise
    shutil.rmtree(old, ignore_errors=True)
  files.sync(epath.Path(os.path.abspath(path)).parent)


def _upload(source: epath.Path, path: epath.Path) -> None:
  """Removes the old manifest first and writes the new one last.

  In between the folder counts as absent.
  """
  (path / MANIFEST).unlink(missing_ok=True)
  names = _names(source, hidden=True)
  if path.exists():
    for name in set(_names(path, hidden=True)) - set(names):
      (path / name).unlink()
  if (source / MANIFEST).exists():
    names.append(MANIFEST)
  for name in names:
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).copy(path / name, overwrite=True)
