"""Steps of a long piece of work, each done once.

A finished step leaves its seconds and its contract in a record. A step with a
record is skipped, so a killed study continues where it stopped. A step is done
again if its contract changed or its output is gone.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from fs_jax.machine import console, manifest, provenance
from fs_jax.runs import layout

KIND = "step"


class Checklist:
  """Named steps of a study. What is ticked is skipped."""

  def __init__(self, workdir: epath.PathLike):
    self.folder = epath.Path(workdir)
    self._done: dict[str, Mapping[str, Any]] = {}

  def do(
    self,
    name: str,
    contract: provenance.Contract,
    run: Callable[[], Any],
    needed: Callable[[], bool] = lambda: False,
  ) -> float:
    """Does a step unless it is ticked; returns the seconds it took.

    Args:
      name: the step's name.
      contract: what the step depends on.
      run: does the step.
      needed: whether the step must be done even if it is ticked, because its
        output is missing or outdated.
    """
    path = self.folder / layout.PARTS / f"{name}.json"
    record = provenance.find_record(path, KIND, contract)
    if record is None or needed():
      console.say(f"-- {name}")
      began = time.perf_counter()
      run()
      seconds = round(time.perf_counter() - began, 2)
      record = {"seconds": seconds, "ended": time.time()}
      manifest.write_record(path, KIND, contract, record)
    self._done[name] = record
    return record["seconds"]

  def seconds(self) -> dict[str, float]:
    """Wall time of every step asked for, in the order they were finished."""
    order = sorted(self._done, key=lambda name: self._done[name]["ended"])
    return {name: self._done[name]["seconds"] for name in order}
