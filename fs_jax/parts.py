"""Parts of a long piece of work, each done once.

A finished part leaves its seconds in a file and is skipped when that is there,
so what was killed goes on where it stopped. What a part makes is its own.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from fs_jax import files, report


class Parts:
  """Named parts of a study, each done once."""

  def __init__(self, workdir: epath.PathLike):
    self.folder = epath.Path(workdir)

  def do(self, name: str, run: Callable[[], Any]) -> float:
    """Runs a part unless it was finished; returns the seconds it took."""
    path = self.folder / "parts" / f"{name}.json"
    if path.exists():
      return json.loads(path.read_text())["seconds"]
    report.say(f"-- {name}")
    began = time.perf_counter()
    run()
    seconds = round(time.perf_counter() - began, 2)
    files.write_json(path, {"seconds": seconds, "ended": time.time()})
    return seconds

  def seconds(self) -> dict[str, float]:
    """Wall time of every finished part, in the order they were finished."""
    paths = [
      p for p in (self.folder / "parts").iterdir() if p.suffix == ".json"
    ]
    said = {p.stem: json.loads(p.read_text()) for p in paths}
    done = sorted(said, key=lambda name: said[name]["ended"])
    return {name: said[name]["seconds"] for name in done}
