"""What a run says, where its folder is in an object store.

Nothing can be appended there: files are written whole, now and then, by a
thread of their own, so that the training does not wait for the store.
"""

import pathlib
import tempfile
import time
from concurrent import futures

from etils import epath

from fs_jax.machine import errors, files

EVERY = 15.0  # seconds, at least, between two uploads


class Uploads:
  """Lines of one file, and the files of a folder on this disk.

  Args:
    lines: the file in the store.
    events: the folder in the store.
    known: lines that the file begins with.
  """

  def __init__(self, lines: epath.Path, events: epath.Path, known: list[str]):
    self._to, self._to_events = lines, events
    self._lines = list(known)
    self._scratch = tempfile.TemporaryDirectory()
    self.events = self._scratch.name  # what lies here is uploaded
    self._thread = futures.ThreadPoolExecutor(1, "uploads")
    self._last = time.monotonic()
    self._sent: futures.Future | None = None

  def add(self, line: str) -> None:
    """Uploaded soon; should that fail, it is tried again with the next."""
    self._lines.append(line)
    busy = self._sent is not None and not self._sent.done()
    if not busy and time.monotonic() - self._last > EVERY:
      self._begin()

  def keep(self) -> None:
    """All of it lies in the store.

    Raises:
      files.DiskFull, OSError: a user has to mend it.
      RuntimeError: the store did not answer.
    """
    if self._sent is not None:
      futures.wait([self._sent])
    try:
      self._begin().result()
    except Exception as error:  # every store's client has its own kinds
      if errors.is_user_fixable(error):
        raise
      raise RuntimeError(
        f"{self._to}: its store must answer; got {errors.one_line(error)}. "
        "start again"
      ) from error

  def close(self) -> None:
    self._thread.shutdown()
    self._scratch.cleanup()

  def _begin(self) -> futures.Future:
    self._last = time.monotonic()
    self._sent = self._thread.submit(self._send, "".join(self._lines))
    return self._sent

  def _send(self, lines: str) -> None:
    files.write_text(self._to, lines)
    for path in pathlib.Path(self.events).iterdir():
      files.write_bytes(self._to_events / path.name, path.read_bytes())
