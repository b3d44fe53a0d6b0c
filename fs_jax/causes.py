"""Whose fault an error is, of a library that says so in its own way.

Orbax, tensorstore, XLA and clients of object stores wrap what happened below
them; the cause is a number or a word somewhere in the chain of exceptions.
"""

import errno
import os
import re
from collections.abc import Iterator

from fs_jax import files

_SHUT = r"PERMISSION_DENIED|UNAUTHENTICATED"
_MEMORY = r"[Oo]ut of memory|RESOURCE_EXHAUSTED.*(memory|allocat)"
# The last status is also that of a store whose quota is used up.
_SILENT = (
  r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|timed out"
  "|RESOURCE_EXHAUSTED"
)


def mendable(error: BaseException) -> bool:
  """Whether files are at fault in a way that a user can mend."""
  words = [os.strerror(number) for number in files.MENDABLE]
  return any(
    isinstance(e, files.DiskFull)
    or getattr(e, "errno", None) in files.MENDABLE
    or any(word in str(e) for word in words)
    for e in _chain(error)
  )


def shut(error: BaseException) -> bool:
  """Whether somebody may not read there."""
  return _found(_SHUT, error) or _errno(error, errno.EACCES, errno.EPERM)


def memory(error: BaseException) -> bool:
  """Whether a host or a device had too little memory."""
  return _found(_MEMORY, error) or isinstance(error, MemoryError)


def unanswered(error: BaseException) -> bool:
  """Whether a disk, a store or a peer failed, and not what is written there."""
  return (
    any(isinstance(e, ConnectionError | TimeoutError) for e in _chain(error))
    or _errno(error, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
    or _found(_SILENT, error)
  )


def reason(error: BaseException) -> str:
  """What it says, in a line."""
  said = str(error).strip() or repr(error)
  return " ".join(said.splitlines()[0].split())[:160]


def _errno(error: BaseException, *numbers: int) -> bool:
  return any(getattr(e, "errno", None) in numbers for e in _chain(error))


def _found(pattern: str, error: BaseException) -> bool:
  return any(re.search(pattern, str(e)) for e in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__
