"""The journal of a run: metrics.jsonl, TensorBoard and the progress line.

A stage has one file, `metrics.jsonl`, with one object per line. A resumed run
drops the lines past its checkpoint, so that a curve never holds a step twice.
"""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorboardX
from etils import epath

from fs_jax import types
from fs_jax.machine import console, errors, files, hardware, processes
from fs_jax.runs import layout, uploads


def every(n: int, step: int, last: int) -> bool:
  """Whether something due every n steps, and at the end, is due after `step`.

  Args:
    n: the period in steps; 0 = never.
    step: the step that was just taken.
    last: the last step of the run.
  """
  return n > 0 and (step % n == 0 or step == last)


def read(folder: epath.PathLike) -> list[dict[str, Any]]:
  """Reads all lines of a stage's metrics.jsonl, in the order written.

  A last line that a kill cut short is left out.

  Raises:
    ValueError: another line is not JSON.
  """
  path = epath.Path(folder) / layout.METRICS
  lines = path.read_text().splitlines() if path.exists() else []
  parsed = []
  for number, line in enumerate(lines):
    try:
      parsed.append(json.loads(line))
    except json.JSONDecodeError:
      if number < len(lines) - 1:
        raise ValueError(
          f"{path}: line {number + 1} must be JSON; got {line[:80]!r}. the "
          "file was edited: delete that line"
        ) from None
  return parsed


class Clock:
  """Measures where a step's seconds go, between two lines of the journal."""

  def __init__(self) -> None:
    self._since = time.perf_counter()
    self._spent: dict[str, float] = {}

  @contextlib.contextmanager
  def spent(self, activity: str) -> Iterator[None]:
    """Counts the seconds inside the block as spent on an activity."""
    began = time.perf_counter()
    try:
      yield
    finally:
      seconds = time.perf_counter() - began
      self._spent[activity] = self._spent.get(activity, 0.0) + seconds

  def read(self) -> tuple[float, dict[str, float]]:
    """Seconds since the last reading, and those spent on each activity."""
    now = time.perf_counter()
    seconds, self._since = now - self._since, now
    spent, self._spent = self._spent, {}
    return seconds, spent


# Activities that are clocked. Waiting for data and for the device are part of a
# step, whose other seconds are the host's own work; saving and validation are
# not.
DATA, DEVICE, SAVING, VALIDATION = "data", "device", "saving", "validation"
START = "start"  # the "split" of the line that each start of a run writes


class Journal:
  """Writes a stage's metrics and shows its progress.

  Of several processes only the first writes; all of them check.

  Args:
    folder: the stage's folder.
    name: the stage's name on the progress line.
    start: the step at which this process starts; later lines on disk are
      dropped.
    steps: the last step.
    flops: multiplications and additions of a step, over all devices.
    peak: bfloat16 FLOP/s of all devices together; None if unknown, as for CPUs,
      and then no "mfu" is written.
  """

  def __init__(
    self,
    folder: epath.PathLike,
    name: str,
    start: int,
    steps: int,
    *,
    flops: float = 0.0,
    peak: float | None = None,
  ):
    self._name, self._start, self._steps = name, start, steps
    self._flops, self._peak = flops, peak
    self.clock = Clock()
    self._board: tensorboardX.SummaryWriter | None = None
    self._uploads: uploads.Uploads | None = None
    self._began, self._useful = time.time(), 0.0
    self._bar = console.Bar(name, steps, start)
    if not processes.is_first():
      return
    folder = epath.Path(folder)
    self._folder = folder
    earlier = [
      x for x in read(folder) if x["step"] <= start or x.get("split") == START
    ]
    lines = [json.dumps(line) + "\n" for line in earlier]
    files.write_text(folder / layout.METRICS, "".join(lines))
    events = os.fspath(folder / layout.BOARD)
    if files.is_remote(folder):
      self._uploads = uploads.Uploads(
        folder / layout.METRICS, folder / layout.BOARD, lines
      )
      events = self._uploads.events
    self._board = tensorboardX.SummaryWriter(
      events,
      # Names have a resolution of one second: restarts must not collide.
      filename_suffix=f".{os.getpid()}-{secrets.token_hex(4)}",
    )
    self._began = min(
      (line["time"] for line in earlier if "time" in line), default=time.time()
    )
    self._useful = max(
      (x.get("useful_seconds", 0.0) for x in earlier), default=0.0
    )
    self.write(
      start,
      START,
      {"devices": jax.device_count(), "processes": jax.process_count()},
    )

  def begin(self) -> None:
    """Restarts the step clock, so that compilation is not counted."""
    self.clock.read()
    self._bar.begin()

  def train(
    self,
    step: int,
    window: Sequence[Mapping[str, types.Array | float]],
    examples: int,
  ) -> dict[str, float]:
    """Writes the mean metrics of the steps since the last call.

    Args:
      step: the last of these steps.
      window: the metrics of each step.
      examples: the batch size.

    Returns:
      The means that it wrote.

    Raises:
      errors.NonFinite: as `check`; then nothing is written.
    """
    with self.clock.spent(DEVICE):  # reading waits for the last step
      window = jax.device_get(list(window))
    self.check(step, window)
    means = {
      key: float(np.mean([np.asarray(m[key]) for m in window]))
      for key in window[0]
    }
    # A resumed window begins with steps of an earlier process, at its pace.
    own = min(len(window), step - self._start)
    means |= self._pace(step, own, examples)
    self.write(step, "train", means)
    self._bar.advance(step, {"loss": means["loss"]})
    return means

  def _pace(self, step: int, steps: int, examples: int) -> dict[str, float]:
    """Speed, time by activity and memory in use, over the last `steps`."""
    whole, spent = self.clock.read()
    data, device, saving, judging = (
      spent.get(what, 0.0) for what in (DATA, DEVICE, SAVING, VALIDATION)
    )
    seconds = whole - saving - judging
    self._useful += whole - saving
    pace = {
      "examples_per_second": examples * steps / seconds,
      "step_seconds": seconds / steps,
      "step_data_seconds": data / steps,
      "step_device_seconds": device / steps,
      "step_host_seconds": max(seconds - data - device, 0.0) / steps,
      "eta_seconds": seconds / steps * (self._steps - step),
      "useful_seconds": self._useful,
      "goodput": self._useful / max(time.time() - self._began, self._useful),
      "host_memory_gib": console.host_memory() / hardware.GIB,
    }
    used = (jax.local_devices()[0].memory_stats() or {}).get(
      "peak_bytes_in_use"
    )
    if used:
      pace["device_memory_gib"] = used / hardware.GIB
    if self._flops:
      pace["tflops_per_second"] = self._flops * steps / seconds / 1e12
    if self._flops and self._peak:
      pace["mfu"] = self._flops * steps / seconds / self._peak
    return pace

  def check(
    self, step: int, window: Sequence[Mapping[str, types.Array | float]]
  ) -> None:
    """Refuses a window whose loss or gradient is not finite.

    Both are checked: a gradient that is not finite spoils the parameters even
    if the loss is finite.

    Args:
      step: the last step of the window.
      window: the metrics of each step.

    Raises:
      errors.NonFinite: names the steps.
    """
    for key, name in (("loss", "loss"), ("grad_norm", "gradient's norm")):
      values = [float(m[key]) for m in window if key in m]
      if not np.isfinite(values).all():
        raise errors.NonFinite(
          f"{self._name}: the {name} must stay finite; got "
          f"{next(v for v in values if not np.isfinite(v))} in steps "
          f"{step - len(window) + 1} to {step}. lower optim.learning_rate, or "
          "look at the data of those steps"
        )

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Writes a line of metrics.jsonl, and the same values to TensorBoard."""
    if self._board is None:
      return
    line = {"step": step, "time": round(time.time(), 3), "split": split}
    line |= {key: float(f"{value:.9g}") for key, value in values.items()}
    if self._uploads is not None:
      self._board.flush()
      self._uploads.add(json.dumps(line) + "\n")
    else:
      with open(self._folder / layout.METRICS, "a") as file:
        file.write(json.dumps(line) + "\n")
    if split == START:
      return
    for key, value in values.items():
      self._board.add_scalar(f"{split}/{key}", float(value), step)
    if split != "train":
      text = "  ".join(f"{key} {value:.3g}" for key, value in values.items())
      self._bar.say(f"{self._name} step {step}: {split} {text}")

  def flush(self) -> None:
    """Returns once all lines are in the folder, even in an object store.

    Raises:
      errors.DiskFull, OSError: the user has to mend it.
      RuntimeError: the store did not answer.
    """
    if self._board is not None and self._uploads is not None:
      self._board.flush()
      self._uploads.flush()

  def say(self, text: str) -> None:
    """Prints a line, with the stage's name, for whoever watches."""
    self._bar.say(f"{self._name}: {text}")

  def close(self) -> None:
    self._bar.close()
    if self._board is None:
      return
    self._board.close()  # writes its last events
    if self._uploads is not None:
      with contextlib.suppress(Exception):  # no checkpoint depends on them
        self._uploads.flush()
      self._uploads.close()
