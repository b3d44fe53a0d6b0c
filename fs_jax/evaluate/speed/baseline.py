"""A peer of a benchmark: a process of its own that answers requests.

Two frameworks in one process share its threads and its memory, and each slows
the other. Requests and answers are JSON, a line each; while nobody asks, a peer
waits for its next line, so that two sides can take turns.
"""

import contextlib
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Ask = Callable[..., dict[str, Any]]


@contextlib.contextmanager
def start(command: Sequence[str], mend: str) -> Iterator[Ask]:
  """Starts a peer, and ends it; yields ask(do, **what) -> answer.

  Args:
    command: the interpreter, a path, and its arguments.
    mend: the end of every message: what to do about a peer that fails.

  Raises:
    ValueError: no such interpreter; a peer that leaves, or answers an error.
  """
  if not pathlib.Path(command[0]).is_file():
    raise ValueError(
      f"peer: must be a Python with what it needs; got {command[0]!r}, which "
      f"does not exist. {mend}"
    )
  with tempfile.TemporaryFile("w+") as heard:
    process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=heard,
      text=True,
    )
    assert process.stdin and process.stdout
    to, answers = process.stdin, process.stdout

    def ask(do: str, **what: Any) -> dict[str, Any]:
      with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"do": do} | what), file=to, flush=True)
      line = answers.readline()
      if not line:
        raise ValueError(
          f"peer: must answer; got exit code {process.wait()} and "
          f"{_last(heard)!r}. {mend}"
        )
      answer = json.loads(line)
      if "error" in answer:
        raise ValueError(
          f"peer: must do what is asked, {do!r}; got {answer['error']!r}. "
          f"{mend}"
        )
      return answer

    try:
      yield ask
    finally:
      with contextlib.suppress(BrokenPipeError):
        to.close()
      answers.close()
      try:
        process.wait(timeout=10)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last(heard: Any) -> str:
  """The last thing a process said before it left."""
  heard.seek(0)
  lines = heard.read().strip().splitlines()
  return lines[-1] if lines else ""
