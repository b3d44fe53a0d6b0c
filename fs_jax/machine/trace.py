"""Traces a few steps on request, for TensorBoard or Perfetto."""

import os
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

import jax
from etils import epath

from fs_jax.machine import console, processes

Result = TypeVar("Result")

STEPS = 5  # traced at a signal


class Tracer:
  """Traces steps `first` to `last`, and five more at each SIGUSR1.

  Send `kill -USR1 <pid of the first process>` while it trains. The trace is in
  `folder`; `tensorboard --logdir=<the stage's folder>` shows it.
  """

  def __init__(self, folder: epath.PathLike, steps: tuple[int, ...] = ()):
    self._folder = os.fspath(epath.Path(folder))
    self._first, self._last = steps or (0, 0)
    self._requested = self._tracing = False

  def __enter__(self) -> "Tracer":
    self._handles_signal = threading.current_thread() is threading.main_thread()
    if self._handles_signal:
      self._previous = signal.signal(signal.SIGUSR1, self._request)
    return self

  def __exit__(self, *_: object) -> None:
    self._stop()
    if self._handles_signal:
      signal.signal(signal.SIGUSR1, self._previous)

  def step(
    self, number: int, fn: Callable[..., Result], *args: object
  ) -> Result:
    """Runs one step, fn(*args); traces it if it is due.

    Devices run behind the host: the trace begins when earlier steps are done
    and ends when the last traced step is.
    """
    if self._requested:
      self._requested = False
      self._first, self._last = number, number + STEPS - 1
    if number == self._first and processes.is_first() and not self._tracing:
      jax.block_until_ready(args)
      jax.profiler.start_trace(self._folder)
      self._tracing = True
    if not self._tracing:
      return fn(*args)
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      result = fn(*args)
    if number >= self._last:
      jax.block_until_ready(result)
      self._stop()
    return result

  def _stop(self) -> None:
    if self._tracing:
      jax.profiler.stop_trace()
      self._tracing = False
      console.say(f"traced to step {self._last}, in {self._folder}")

  def _request(self, *_: object) -> None:
    self._requested = True
