"""Files that are whole or absent: atomic writes.

On a local disk a write goes beside its target and is renamed. Object stores
write a file whole or not at all, so there a manifest alone says "complete".
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from fs_jax.machine import errors


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes the file whole; on any error the older version stays.

  Raises:
    DiskFull: no space is left.
  """
  path = epath.Path(path)
  with explain_full_disk(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if remote(path):
      path.write_bytes(data)
      return
    temporary = beside(path)
    try:
      with open(temporary, "xb") as file:
        write_to(file, data)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
      sync(path.parent)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


def write_text(path: epath.PathLike, text: str) -> None:
  """As `write_bytes`, in UTF-8."""
  write_bytes(path, text.encode())


def write_json(path: epath.PathLike, values: Any) -> None:
  """As `write_bytes`; NaN and infinity, which are not JSON, are refused."""
  write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_array(path: epath.PathLike, array: np.ndarray) -> None:
  """An .npy file, inside a `folder` that is not there yet: not atomic.

  `np.save` loses the reason when a disk is full; this keeps it.
  """
  array = np.ascontiguousarray(array)
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, np.lib.format.header_data_from_array_1_0(array)
  )
  with explain_full_disk(epath.Path(path)), open(path, "wb") as file:
    write_to(file, header.getvalue())
    write_to(file, array)


def read_array(path: epath.PathLike) -> np.ndarray:
  """An .npy file, wherever it lies."""
  with epath.Path(path).open("rb") as file:
    return np.load(file, allow_pickle=False)


def write_to(file: BinaryIO, data: bytes | np.ndarray) -> None:
  """Appends bytes, or those of an array in C order: every write is here."""
  if isinstance(data, np.ndarray):
    file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
  else:
    file.write(data)


def cache() -> epath.Path:
  """Of this user on this machine: what can be made again at any time."""
  root = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
  return root.expanduser() / "fs_jax"


def sha256(path: epath.PathLike) -> str:
  """SHA-256 of a file, in hex."""
  with epath.Path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def explain_full_disk(path: epath.Path) -> Iterator[None]:
  """A full disk as a sentence about `path`; other errors as they come."""
  try:
    yield
  except (OSError, errors.DiskFull) as error:
    if not errors.is_disk_full(error):
      raise
    raise errors.DiskFull(
      f"{path}: needs space on its disk; got {os.strerror(errno.ENOSPC)!r}. "
      f"free some, or choose another disk; what was there before is unchanged"
    ) from error


def remote(path: epath.PathLike) -> bool:
  """Whether it lies in an object store: no renaming, appending or mapping."""
  return "://" in os.fspath(path)


def beside(path: epath.Path) -> epath.Path:
  """A name in the same folder, so that renaming stays on one disk."""
  path = epath.Path(os.path.abspath(path))
  return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"


def sync(path: epath.Path) -> None:
  """The bytes of a file, or the names of a folder, reach the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
