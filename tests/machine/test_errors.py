"""Whose fault an error is, whoever raised it and however deep it lies."""

import errno
import os
import pathlib

import numpy as np
import pytest

from fs_jax import config
from fs_jax.machine import errors


def wrapped(cause: BaseException) -> BaseException:
  """As libraries raise it: the cause lies two exceptions below."""
  try:
    try:
      try:
        raise cause
      except type(cause) as error:
        raise RuntimeError("could not write a shard") from error
    except RuntimeError as error:
      raise ValueError("save failed") from error
  except ValueError as error:
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
SAID = RuntimeError(f"INTERNAL: [{os.strerror(errno.EROFS)}]")


@pytest.mark.parametrize(
  ("cause", "classified_by"),
  [
    (FULL, errors.is_user_fixable),
    (SAID, errors.is_user_fixable),
    (errors.DiskFull("x: needs space"), errors.is_user_fixable),
    (PermissionError(errno.EACCES, "denied"), errors.is_permission_error),
    (RuntimeError("PERMISSION_DENIED: 403"), errors.is_permission_error),
    (MemoryError(), errors.is_out_of_memory),
    (
      RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
      errors.is_out_of_memory,
    ),
    (ConnectionResetError(), errors.is_transient),
    (OSError(errno.EIO, "input/output"), errors.is_transient),
    (RuntimeError("UNAVAILABLE: 503"), errors.is_transient),
  ],
  ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
def test_a_cause_is_found_below_what_wraps_it(cause, classified_by):
  assert classified_by(cause)
  assert classified_by(wrapped(cause))
  assert not classified_by(wrapped(KeyError("a bug")))


def test_what_may_pass_is_not_for_a_user_to_mend():
  for error in (OSError(errno.EIO, "disk"), TimeoutError(), ValueError("x")):
    assert not errors.is_user_fixable(wrapped(error))


def test_an_order_to_stop_is_no_exception_that_code_may_swallow():
  assert not issubclass(errors.Preempted, Exception)


def test_exit_codes_tell_ends_apart():
  codes = (
    *(errors.DONE, errors.FAILED, errors.BAD_INPUT, errors.DIVERGED),
    *(errors.PREEMPTED, errors.INTERRUPTED),
  )
  assert len(set(codes)) == len(codes)
  assert errors.DONE == 0  # what shells call success
  # Engines start a program again after any code but these and 0.
  assert not {errors.FAILED, errors.PREEMPTED} & set(errors.FINAL)


def raised(call):
  try:
    call()
  except Exception as error:
    return error


@pytest.mark.parametrize(
  ("call", "ours"),
  [
    (lambda: config.Data(image_size=0), True),
    (lambda: np.zeros(3).reshape(2, 2), False),  # a library's own check
    (pathlib.Path("/nowhere/x").read_text, True),
    (lambda: 1 / 0, False),
  ],
)
def test_input_is_told_from_bugs(call, ours):
  assert errors.is_input(raised(call)) == ours


def test_what_passes_by_itself_is_no_input():
  assert not errors.is_input(TimeoutError("the store did not answer"))
  assert errors.is_input(OSError("x: must be a folder; got a file. move it"))
