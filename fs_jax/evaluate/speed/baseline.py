"""A peer of a benchmark: a separate process that answers requests.

Two frameworks in one process share its threads and its memory, and slow each
other down. Requests and answers are JSON, one per line. Between requests the
peer waits for its next line, so that two sides can take turns.
"""

import contextlib
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

Ask = Callable[..., dict[str, Any]]


@contextlib.contextmanager
def start(command: Sequence[str], mend: str) -> Iterator[Ask]:
  """Starts a peer and ends it; yields ask(do, **arguments) -> answer.

  Args:
    command: the interpreter's path and its arguments.
    mend: the end of every message: what to do if the peer fails.

  Raises:
    ValueError: the interpreter does not exist; the peer exits or answers with
      an error.
  """
  if not pathlib.Path(command[0]).is_file():
    raise ValueError(
      f"peer: must be a Python with its packages; got {command[0]!r}, which "
      f"does not exist. {mend}"
    )
  with tempfile.TemporaryFile("w+") as log:
    process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
    )
    assert process.stdin and process.stdout
    requests, answers = process.stdin, process.stdout

    def ask(do: str, **arguments: Any) -> dict[str, Any]:
      with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"do": do} | arguments), file=requests, flush=True)
      line = answers.readline()
      if not line:
        raise ValueError(
          f"peer: must answer; got exit code {process.wait()} and "
          f"{_last_line(log)!r}. {mend}"
        )
      answer = json.loads(line)
      if "error" in answer:
        raise ValueError(
          f"peer: must do as requested, {do!r}; got {answer['error']!r}. {mend}"
        )
      return answer

    try:
      yield ask
    finally:
      with contextlib.suppress(BrokenPipeError):
        requests.close()
      answers.close()
      try:
        process.wait(timeout=10)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: IO[str]) -> str:
  """The last line that a process printed before it exited."""
  log.seek(0)
  lines = log.read().strip().splitlines()
  return lines[-1] if lines else ""
