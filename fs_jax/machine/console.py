"""Output for a person: lines, tables as wide as the terminal, progress."""

import os
import pathlib
import sys
import time
from collections.abc import Mapping

from rich import console as rich_console
from rich import progress as rich_progress

from fs_jax.machine import hardware, processes

_STATM = pathlib.Path("/proc/self/statm")


def say(text: str) -> None:
  """Prints a line to stderr, apart from results on stdout."""
  print(text, file=sys.stderr, flush=True)


def host_memory() -> int:
  """Resident memory of this process in bytes; 0 where it is unknown."""
  if not _STATM.exists():
    return 0
  return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def format_gib(count: float) -> str:
  """Bytes as GiB: 1610612736 -> "1.50"."""
  return f"{count / hardware.GIB:.2f}"


def wide() -> rich_console.Console:
  """A console for tables: as wide as the terminal, 200 columns without one.

  Rich's own 80 columns cut tables in log files.
  """
  return rich_console.Console(width=None if sys.stdout.isatty() else 200)


class Bar:
  """Progress: a live line on a terminal, elsewhere a plain one now and then.

  Args:
    name: the bar's label.
    total: the count at which all is done.
    start: the count already done.
    patience: seconds before anything is shown; work done by then stays silent.
  """

  def __init__(
    self, name: str, total: int, start: int = 0, patience: float = 0.0
  ):
    self._name, self._total, self._start = name, total, start
    self._began = self._printed = time.perf_counter()
    self._visible_from = self._began + patience
    self._live: rich_progress.Progress | None = None
    self._silent = not processes.is_first()
    if patience <= 0:
      self._show()

  def _show(self) -> None:
    """Starts the live line, if there is a terminal for it."""
    if self._live is not None or self._silent or not sys.stderr.isatty():
      return
    self._live = rich_progress.Progress(
      rich_progress.TextColumn("{task.description:<24}"),
      rich_progress.BarColumn(),
      rich_progress.MofNCompleteColumn(),
      rich_progress.TimeRemainingColumn(),
      rich_progress.TextColumn("{task.fields[values]}"),
      console=rich_console.Console(stderr=True),
      transient=True,
    )
    self._live.start()
    self._task = self._live.add_task(
      self._name, total=self._total, completed=self._start, values=""
    )

  def begin(self) -> None:
    """Starts the clock behind the remaining-time estimate."""
    self._began = time.perf_counter()

  def advance(self, done: int, values: Mapping[str, float] = {}) -> None:
    """Reports that `done` of the total are done."""
    now = time.perf_counter()
    if now < self._visible_from:
      return
    self._show()
    shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
    if self._live is not None:
      self._live.update(self._task, completed=done, values=shown)
      return
    if now - self._printed < 10 and done < self._total:
      return
    self._printed = now
    each = (now - self._began) / max(done - self._start, 1)
    left = each * (self._total - done)
    self.say(f"{self._name} {done}/{self._total}  {shown}  {left:.0f} s left")

  def say(self, text: str) -> None:
    """Prints a line that stays above the bar."""
    if self._silent:
      return
    if self._live is not None:
      self._live.console.print(text)
    else:
      say(text)

  def close(self) -> None:
    if self._live is not None:
      self._live.stop()

  def __enter__(self) -> "Bar":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
