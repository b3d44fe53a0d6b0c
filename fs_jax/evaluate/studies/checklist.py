"""Steps of a long piece of work, each done once.

A finished step leaves its seconds in a record and is skipped when that is
there, so what was killed goes on where it stopped. The record says what the
step was done with: with anything else, or without what it made, it is done
again.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from fs_jax.machine import console, manifest, provenance
from fs_jax.runs import layout

KIND = "step"


class Parts:
  """Named steps of a study, each done once."""

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
    """Does a step unless it was finished; returns the seconds it took.

    Args:
      name: of the step.
      contract: what it is done with.
      run: does it.
      needed: whether what it makes has to be made, even if it was finished.
    """
    path = self.folder / layout.PARTS / f"{name}.json"
    done = provenance.find_record(path, KIND, contract)
    if done is None or needed():
      console.say(f"-- {name}")
      began = time.perf_counter()
      run()
      seconds = round(time.perf_counter() - began, 2)
      done = {"seconds": seconds, "ended": time.time()}
      manifest.write_record(path, KIND, contract, done)
    self._done[name] = done
    return done["seconds"]

  def seconds(self) -> dict[str, float]:
    """Wall time of every step asked for, in the order they were finished."""
    order = sorted(self._done, key=lambda name: self._done[name]["ended"])
    return {name: self._done[name]["seconds"] for name in order}
