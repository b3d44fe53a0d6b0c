"""Exit codes, and errors told apart: the user's, memory, worth a retry.

This project's own errors tell by their type. Orbax, tensorstore, XLA and
clients of object stores wrap what happened below them: there the cause is an
errno or a word somewhere in the chain of exceptions. Engines that restart
programs, on one machine and on pods, go by the exit codes.
"""

import errno
import os
import pathlib
import re
from collections.abc import Iterator

DONE, FAILED, BAD_INPUT, DIVERGED, PREEMPTED, INTERRUPTED = 0, 1, 2, 3, 75, 130
# Restarted unchanged, a program would end the same way.
FINAL = (BAD_INPUT, DIVERGED)

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What the reader of the message can fix. Anything else, such as a disk that did
# not answer, may be gone when a launcher tries again.
MENDABLE = frozenset(
  {
    *_FULL,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
  }
)
# Where this project's own code lies.
_ROOT = pathlib.Path(__file__).resolve().parents[2]
_OWN = tuple(str(_ROOT / name) + os.sep for name in ("fs_jax", "launch"))
_DENIED = r"PERMISSION_DENIED|UNAUTHENTICATED"
_MEMORY = r"[Oo]ut of memory|RESOURCE_EXHAUSTED.*(memory|allocat)"
# The last status is also what a store reports when its quota is used up.
_TRANSIENT = (
  r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|timed out"
  "|RESOURCE_EXHAUSTED"
)


class DiskFull(ValueError):
  """No space is left; what was there before is unchanged."""


class Preempted(BaseException):
  """The machine is being reclaimed.

  A BaseException, so that `except Exception` cannot swallow it.
  """


class NonFinite(ArithmeticError):
  """The loss is no longer a number; the last checkpoint is the last good."""


def is_input(error: BaseException) -> bool:
  """Whether an error is about what the user gave, and so the user can fix it.

  A ValueError that this project raises is about input; one from inside a
  library is our bug, and needs its traceback.
  """
  if isinstance(error, OSError):
    if isinstance(error, ConnectionError | TimeoutError):  # it passes
      return False
    # An OSError without errno is this project's own.
    return error.errno is None or error.errno in MENDABLE
  if not isinstance(error, ValueError):
    return False
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  if trace is None:
    return True
  return os.path.realpath(trace.tb_frame.f_code.co_filename).startswith(_OWN)


def is_user_fixable(error: BaseException) -> bool:
  """Whether files are at fault in a way that a user can fix."""
  words = [os.strerror(number) for number in MENDABLE]
  return any(
    isinstance(e, DiskFull)
    or getattr(e, "errno", None) in MENDABLE
    or any(word in str(e) for word in words)
    for e in _chain(error)
  )


def is_permission_error(error: BaseException) -> bool:
  """Whether access to a file or an object store was denied."""
  return _mentions(_DENIED, error) or _has_errno(
    error, errno.EACCES, errno.EPERM
  )


def is_out_of_memory(error: BaseException) -> bool:
  """Whether a host or a device ran out of memory."""
  return _mentions(_MEMORY, error) or any(
    isinstance(e, MemoryError) for e in _chain(error)
  )


def is_transient(error: BaseException) -> bool:
  """Whether a disk, a store or a peer failed, rather than the data on it."""
  return (
    any(isinstance(e, ConnectionError | TimeoutError) for e in _chain(error))
    or _has_errno(error, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
    or _mentions(_TRANSIENT, error)
  )


def one_line(error: BaseException) -> str:
  """The error's message on one line, cut at 160 characters."""
  message = str(error).strip() or repr(error)
  return " ".join(message.splitlines()[0].split())[:160]


def _has_errno(error: BaseException, *numbers: int) -> bool:
  return any(getattr(e, "errno", None) in numbers for e in _chain(error))


def _mentions(pattern: str, error: BaseException) -> bool:
  return any(re.search(pattern, str(e)) for e in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def is_disk_full(error: BaseException) -> bool:
  """Whether the disk is full or its quota is used up."""
  return isinstance(error, DiskFull) or getattr(error, "errno", None) in _FULL
