"""Commands as a person types them, in the form in which this program started.

In a clone that is `python -m launch.search ...`, of an installed package
`fs-jax search ...`.
"""

import os
import shlex
import sys

CONSOLE = "fs-jax"


def is_installed() -> bool:
  """Whether this program was started by its console command."""
  return os.path.basename(sys.argv[0] if sys.argv else "") == CONSOLE


def program(name: str) -> str:
  """What starts a program: "python -m launch.search"."""
  return f"{CONSOLE} {name}" if is_installed() else f"python -m launch.{name}"


def command(name: str, *words: object) -> str:
  """A program with its arguments, quoted as a shell needs it."""
  return " ".join([program(name), shlex.join(map(str, words))]).rstrip()
