"""What a run says while it goes: JSONL, TensorBoard, and a line to look at.

One file per stage, `metrics.jsonl`, one object a line. A resumed run drops the
lines past its checkpoint, so that a curve never holds a step twice.
"""

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX
from etils import epath
from rich import console
from rich import progress as rich_progress

from fs_jax import files

METRICS = "metrics.jsonl"


class NonFinite(ArithmeticError):
  """The loss is no longer a number; the last checkpoint is the last good."""


def every(n: int, step: int, last: int) -> bool:
  """Whether something due every n steps is due after `step` of `last`."""
  return n > 0 and (step % n == 0 or step == last)


def read(folder: epath.PathLike) -> list[dict[str, Any]]:
  """All lines of a stage's metrics.jsonl, in the order written.

  A last line that a kill cut short is left out.
  """
  path = epath.Path(folder) / METRICS
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


def say(text: str) -> None:
  """A line for whoever watches, apart from results on stdout."""
  print(text, file=sys.stderr, flush=True)


class Report:
  """Writes one stage's metrics and shows how far it is.

  Args:
    folder: of the stage.
    name: said on the progress line.
    start: first step of this process; later lines on disk are dropped.
    steps: last step.
  """

  def __init__(self, folder: epath.PathLike, name: str, start: int, steps: int):
    folder = epath.Path(folder)
    kept = [line for line in read(folder) if line["step"] <= start]
    files.write_text(
      folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept)
    )
    self._path = os.fspath(folder / METRICS)
    self._board = tensorboardX.SummaryWriter(
      os.fspath(folder / "tb"),
      # Names have a resolution of one second: restarts must not collide.
      filename_suffix=f".{os.getpid()}-{secrets.token_hex(4)}",
    )
    self._name, self._steps = name, steps
    self._done, self._since = start, time.perf_counter()
    self._bar = Bar(name, steps, start)

  def train(
    self, step: int, window: Sequence[Mapping[str, Any]], examples: int
  ) -> dict[str, float]:
    """Means of the metrics of the steps since the last call.

    Raises:
      NonFinite: as `check`; nothing of it is written.
    """
    self.check(step, window)
    means = {
      key: float(np.mean([np.asarray(m[key]) for m in window]))
      for key in window[0]
    }
    now = time.perf_counter()
    seconds, self._since = now - self._since, now
    means["examples_per_second"] = examples * len(window) / seconds
    self.write(step, "train", means)
    self._bar.advance(step, {"loss": means["loss"]})
    return means

  def check(self, step: int, window: Sequence[Mapping[str, Any]]) -> None:
    """Refuses steps, the last of them `step`, after which a state is lost.

    A gradient that is not finite spoils the parameters of a finite loss.

    Raises:
      NonFinite: names the steps.
    """
    for key, name in (("loss", "loss"), ("grad_norm", "gradient's norm")):
      values = [float(m[key]) for m in window if key in m]
      if not np.isfinite(values).all():
        raise NonFinite(
          f"{self._name}: the {name} must stay finite; got "
          f"{next(v for v in values if not np.isfinite(v))} in steps "
          f"{step - len(window) + 1} to {step}. lower optim.learning_rate, or "
          "look at the data of those steps"
        )

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """One line of metrics.jsonl, and the same to TensorBoard."""
    line = {"step": step, "time": round(time.time(), 3), "split": split}
    line |= {key: float(f"{value:.6g}") for key, value in values.items()}
    with open(self._path, "a") as file:
      file.write(json.dumps(line) + "\n")
    for key, value in values.items():
      self._board.add_scalar(f"{split}/{key}", float(value), step)
    if split != "train":
      said = "  ".join(f"{key} {value:.3g}" for key, value in values.items())
      self._bar.say(f"{self._name} step {step}: {split} {said}")

  def close(self) -> None:
    self._bar.close()
    self._board.close()


class Bar:
  """Progress: a live line on a terminal, a plain one now and then elsewhere."""

  def __init__(self, name: str, total: int, start: int = 0):
    self._name, self._total, self._start = name, total, start
    self._began = self._said = time.perf_counter()
    self._live = None
    if sys.stderr.isatty():
      self._live = rich_progress.Progress(
        rich_progress.TextColumn("{task.description:<24}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[said]}"),
        console=console.Console(stderr=True),
        transient=True,
      )
      self._live.start()
      self._task = self._live.add_task(
        name, total=total, completed=start, said=""
      )

  def advance(self, done: int, values: Mapping[str, float] = {}) -> None:
    """Says that `done` of the total are done."""
    said = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
    if self._live is not None:
      self._live.update(self._task, completed=done, said=said)
      return
    now = time.perf_counter()
    if now - self._said < 10 and done < self._total:
      return
    self._said = now
    each = (now - self._began) / max(done - self._start, 1)
    left = each * (self._total - done)
    self.say(f"{self._name} {done}/{self._total}  {said}  {left:.0f} s left")

  def say(self, text: str) -> None:
    """A line that stays."""
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
