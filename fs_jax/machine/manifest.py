"""Folders and records that say what they hold and what they were made from.

A folder of results holds `manifest.json`, written last: kind, contract, counts,
and the size and SHA-256 of every other file. Without it the folder does not
exist. A record is such a result in one JSON file. Neither is written without
the contract that says what it was made from; `provenance` compares it. What the
other fields mean is for the module that owns the kind.
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
_MAKERS = {  # the program that makes a folder of each kind
  "vectors": "encode",
  "memories": "encode",
  "items": "encode",
  "index": "export_index",
}


@contextlib.contextmanager
def folder(path: epath.PathLike, kind: str) -> Iterator[epath.Path]:
  """A temporary folder that takes the name `path` when the block ends well.

  An older version is replaced at the very end, and only if it is one: an empty
  folder, or one whose manifest says the same kind. On an error nothing is left
  and the older version stays.

  Raises:
    ValueError: `path` is something else.
    DiskFull: no space is left.
  """
  path = epath.Path(path)
  if path.exists() and (other := _other_kind(path, kind)):
    raise ValueError(
      f"{path}: only an empty folder or another {kind} is replaced; got "
      f"{other}. choose another folder or move it away"
    )
  if files.remote(path):
    with (
      tempfile.TemporaryDirectory() as temporary,
      files.explain_full_disk(path),
    ):
      yield epath.Path(temporary)
      _upload(epath.Path(temporary), path)
    return
  temporary = files.beside(path)
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


def local(path: epath.PathLike) -> epath.Path:
  """The folder itself, or a copy on this disk: what memory maps need.

  Copies stay in ~/.cache/fs_jax, by the content of their manifest.
  """
  path = epath.Path(path)
  if not files.remote(path):
    return path
  key = hashlib.sha256(os.fspath(path).encode() + _manifest_text(path).encode())
  copy = files.cache() / key.hexdigest()[:32]
  if not (copy / MANIFEST).exists():
    with folder(copy, json.loads(_manifest_text(path))["kind"]) as temporary:
      for name in [*json.loads(_manifest_text(path))["files"], MANIFEST]:
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).copy(temporary / name)
  return copy


def how_to_make(kind: str) -> str:
  """What to run for a folder of a kind."""
  maker = _MAKERS.get(kind)
  return commands.program(maker) if maker else "as it was made"


def write_manifest(
  path: epath.PathLike, fields: Mapping[str, Any]
) -> dict[str, Any]:
  """Lists every file of the folder, last of all; returns what it wrote.

  Args:
    path: a local folder.
    fields: JSON values; `kind` and `contract` are required, `schema` and
      `files` are added.

  Raises:
    ValueError: no contract, which is what the folder was made from.
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
  """A result of one file, as `files.write_json`, with what it was made from.

  Args:
    path: of the file.
    kind: "weights", "step", "report", ...
    contract: parts that `values` follow from.
    values: JSON; its keys are none of schema, kind and contract.

  Raises:
    ValueError: no contract.
  """
  _require_contract(path, contract)
  head = {"schema": SCHEMA, "kind": kind, "contract": dict(contract)}
  files.write_json(path, {**head, **values})


def read_record(
  path: epath.PathLike, kind: str, *, mend: str
) -> dict[str, Any]:
  """What `write_record` wrote, the contract under its own key.

  Raises:
    FileNotFoundError: no such file.
    ValueError: JSON that is not of this kind and schema.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"{path}: must exist; got no such file. {mend}")
  try:
    values = json.loads(path.read_text())
    found = values.get("schema"), values.get("kind")
    if found == (SCHEMA, kind) and not isinstance(values["contract"], dict):
      raise TypeError("contract is no object")
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: must be JSON that this program wrote; got {error!r}. {mend}"
    ) from None
  if found != (SCHEMA, kind):
    raise ValueError(
      f"{path}: must be of schema {SCHEMA} and kind {kind!r}; got {found[0]!r} "
      f"and {found[1]!r}. {mend}"
    )
  return values


def _require_contract(path: epath.PathLike, contract: Any) -> None:
  if not contract:
    raise ValueError(
      f"{path}: what is kept must say what it was made from; got no contract. "
      "give its parts"
    )


def read_manifest(
  path: epath.PathLike, kind: str, *, hashes: bool = True, mend: str = ""
) -> dict[str, Any]:
  """The manifest of a folder whose files are all there and unchanged.

  Args:
    path: the folder.
    kind: "vectors", "memories", "index", ...
    hashes: False checks names and sizes only: for folders too large to read.
    mend: said where it cannot be used; if "", what makes the kind.

  Raises:
    FileNotFoundError: no such folder, or one that was never finished.
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
  found = _names(path)
  for name in sorted(set(found) - set(wanted)):
    raise ValueError(
      f"{path}: holds only files that its manifest lists; got {name!r}. "
      f"move it away, or {again}"
    )
  for name, (size, digest) in wanted.items():
    digest = digest if hashes else ""
    _check_file(path, name, name in found, size, digest, mend)
  return manifest


def _check_file(
  path: epath.Path, name: str, found: bool, size: int, digest: str, mend: str
) -> None:
  makes = "copy the folder again from where it was made, or "
  makes += mend or "make it again"
  if not found:
    raise ValueError(f"{path}: {name!r} is listed; got no such file. {makes}")
  got = _size(path / name)
  if got != size:
    raise ValueError(
      f"{path}: {name!r} must have {size} bytes; got {got}. {makes}"
    )
  if digest and (other := files.sha256(path / name)) != digest:
    raise ValueError(
      f"{path}: {name!r} must have SHA-256 {digest[:12]}...; got "
      f"{other[:12]}...: it was changed. {makes}"
    )


def _manifest_text(path: epath.Path) -> str:
  return (path / MANIFEST).read_text()


def _size(path: epath.Path) -> int:
  return path.stat().length


def _names(path: epath.Path, *, hidden: bool = False) -> list[str]:
  """Files below a folder as relative names, its own manifest apart."""
  return sorted(name for name in _walk(path, hidden) if name != MANIFEST)


def _walk(path: epath.Path, hidden: bool) -> Iterator[str]:
  for child in path.iterdir():
    if child.name.startswith(".") and not hidden:
      continue  # what file managers and network disks leave behind
    if child.is_dir():
      yield from (f"{child.name}/{name}" for name in _walk(child, hidden))
    else:
      yield child.name


def _other_kind(path: epath.Path, kind: str) -> str:
  """What lies there and must not be lost; "" where nothing does."""
  if not path.is_dir():
    return "a file"
  if not (path / MANIFEST).exists():
    return "something else" if any(path.iterdir()) else ""
  try:
    found = json.loads(_manifest_text(path)).get("kind")
  except (ValueError, AttributeError):
    return ""  # cut short by an earlier version's crash
  return "" if found in (kind, None) else f"a folder of kind {found!r}"


def _swap(new: epath.Path, path: epath.Path) -> None:
  """Renames; a folder cannot be renamed over a full one, so in two moves."""
  if not path.exists():
    os.rename(new, path)
  else:
    old = files.beside(path)
    os.rename(path, old)
    try:
      os.rename(new, path)
    except BaseException:
      os.rename(old, path)
      raise
    shutil.rmtree(old, ignore_errors=True)
  files.sync(epath.Path(os.path.abspath(path)).parent)


def _upload(source: epath.Path, path: epath.Path) -> None:
  """The old manifest first, the new one last: in between it does not exist."""
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
