"""Atomic writes: a file is whole or absent.

On a local disk a write goes to a temporary name beside its target and is
renamed. Object stores write a file whole or not at all; there a manifest alone
marks a folder as complete.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO

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
    if is_remote(path):
      path.write_bytes(data)
      return
    temporary = temporary_name(path)
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
  """Writes UTF-8 text as `write_bytes` does."""
  write_bytes(path, text.encode())


def write_json(path: epath.PathLike, values: object) -> None:
  """Writes JSON as `write_bytes` does; refuses NaN and infinity."""
  write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_array(path: epath.PathLike, array: np.ndarray) -> None:
  """Writes an .npy file, not atomically: for folders that are still temporary.

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
  """Reads an .npy file from a disk or an object store."""
  with epath.Path(path).open("rb") as file:
    return np.load(file, allow_pickle=False)


def write_to(file: BinaryIO, data: bytes | np.ndarray) -> None:
  """Appends bytes, or an array's in C order. Every write goes through here."""
  if isinstance(data, np.ndarray):
    file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
  else:
    file.write(data)


def cache_folder() -> epath.Path:
  """The user's cache on this machine: all in it can be made again."""
  root = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
  return root.expanduser() / "fs_jax"


def sha256(path: epath.PathLike) -> str:
  """SHA-256 of a file, in hex."""
  with epath.Path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def explain_full_disk(path: epath.Path) -> Iterator[None]:
  """Turns a full disk into a DiskFull that names `path`."""
  try:
    yield
  except (OSError, errors.DiskFull) as error:
    if not errors.is_disk_full(error):
      raise
    raise errors.DiskFull(
      f"{path}: needs space on its disk; got {os.strerror(errno.ENOSPC)!r}. "
      "free some, or choose another disk; what was there before is unchanged"
    ) from error


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in an object store: no renaming, appending, mapping."""
  return "://" in os.fspath(path)


def temporary_name(path: epath.Path) -> epath.Path:
  """A hidden name in the same folder, so that renaming stays on one disk."""
  path = epath.Path(os.path.abspath(path))
  return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"


def sync(path: epath.Path) -> None:
  """Flushes a file's bytes, or a folder's names, to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
