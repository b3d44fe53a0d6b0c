"""A trace of some steps, when one is asked for: for TensorBoard or Perfetto."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from fs_jax.machine import console, processes

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

  def step(self, number: int, run: Callable[..., Any], *args: Any) -> Any:
    """run(*args), one step, which is traced if it is one of those.

    A device works behind what it is asked: the trace begins when the steps
    before are done and ends when the last one is.
    """
    if self._asked:
      self._asked = False
      self._first, self._last = number, number + STEPS - 1
    if number == self._first and processes.is_first() and not self._on:
      jax.block_until_ready(args)
      jax.profiler.start_trace(self._folder)
      self._on = True
    if not self._on:
      return run(*args)
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      result = run(*args)
    if number >= self._last:
      jax.block_until_ready(result)
      self._stop()
    return result

  def _stop(self) -> None:
    if self._on:
      jax.profiler.stop_trace()
      self._on = False
      console.say(f"traced to step {self._last}, in {self._folder}")

  def _ask(self, *_: object) -> None:
    self._asked = True
