"""A trace of some steps, when one is asked for: for TensorBoard or Perfetto."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
from etils import epath

from fs_jax import processes, report

STEPS = 5  # that a signal asks for


class Tracer:
  """Traces steps `first` to `last`, and five more at each SIGUSR1.

  `kill -USR1 <pid of the first process>` while it trains; the trace lies in
  `folder`, and `tensorboard --logdir` of the stage shows it.
  """

  def __init__(self, folder: epath.PathLike, steps: tuple[int, ...] = ()):
    self._folder = os.fspath(epath.Path(folder))
    self._first, self._last = steps or (0, 0)
    self._asked = self._on = False

  def __enter__(self) -> "Tracer":
    self._listens = threading.current_thread() is threading.main_thread()
    if self._listens:
      self._before = signal.signal(signal.SIGUSR1, self._ask)
    return self

  def __exit__(self, *_: object) -> None:
    self._stop()
    if self._listens:
      signal.signal(signal.SIGUSR1, self._before)

  @contextlib.contextmanager
  def step(self, number: int) -> Iterator[None]:
    """Around one step."""
    if self._asked:
      self._asked = False
      self._first, self._last = number, number + STEPS - 1
    if number == self._first and processes.is_first() and not self._on:
      jax.profiler.start_trace(self._folder)
      self._on = True
    if not self._on:
      yield
      return
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      yield
    if number >= self._last:
      self._stop()

  def _stop(self) -> None:
    if self._on:
      jax.effects_barrier()
      jax.profiler.stop_trace()
      self._on = False
      report.say(f"traced to step {self._last}, in {self._folder}")

  def _ask(self, *_: object) -> None:
    self._asked = True
