"""Uploads a stage's metrics when its folder is in an object store.

Object stores cannot append. A thread writes whole files every `EVERY` seconds,
so that training does not wait for the store.
"""

import pathlib
import tempfile
import time
from concurrent import futures

from etils import epath

from fs_jax.machine import errors, files

EVERY = 15.0  # seconds, at least, between two uploads


class Uploads:
  """Uploads the lines of one file, and the files of a local folder.

  Args:
    lines: the file in the store.
    events: the folder in the store.
    first: the lines that the file begins with.
  """

  def __init__(self, lines: epath.Path, events: epath.Path, first: list[str]):
    self._to, self._to_events = lines, events
    self._lines = list(first)
    self._scratch = tempfile.TemporaryDirectory()
    self.events = self._scratch.name  # the local folder that is uploaded
    self._thread = futures.ThreadPoolExecutor(1, "uploads")
    self._last = time.monotonic()
    self._sent: futures.Future[None] | None = None

  def add(self, line: str) -> None:
    """Uploads a line soon; if that fails, again with the next line."""
    self._lines.append(line)
    busy = self._sent is not None and not self._sent.done()
    if not busy and time.monotonic() - self._last > EVERY:
      self._begin()

  def flush(self) -> None:
    """Returns once all lines and events are in the store.

    Raises:
      errors.DiskFull, OSError: the user has to mend it.
      RuntimeError: the store did not answer.
    """
    if self._sent is not None:
      futures.wait([self._sent])
    try:
      self._begin().result()
    except Exception as error:  # each store's client raises its own types
      if errors.is_user_fixable(error):
        raise
      raise RuntimeError(
        f"{self._to}: its store must answer; got {errors.one_line(error)}. "
        "start again"
      ) from error

  def close(self) -> None:
    self._thread.shutdown()
    self._scratch.cleanup()

  def _begin(self) -> futures.Future[None]:
    self._last = time.monotonic()
    self._sent = self._thread.submit(self._send, "".join(self._lines))
    return self._sent

  def _send(self, lines: str) -> None:
    files.write_text(self._to, lines)
    for path in pathlib.Path(self.events).iterdir():
      files.write_bytes(self._to_events / path.name, path.read_bytes())
