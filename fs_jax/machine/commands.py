"""Commands as a person types them, in the form that started this program.

That is `python -m launch.search ...` in a clone, and `fs-jax search ...` for an
installed package.
"""

import os
import shlex
import sys

CONSOLE = "fs-jax"


def is_installed() -> bool:
  """Whether this program was started by its console command."""
  return os.path.basename(sys.argv[0] if sys.argv else "") == CONSOLE


def program(name: str) -> str:
  """The command that starts a program: "python -m launch.search"."""
  return f"{CONSOLE} {name}" if is_installed() else f"python -m launch.{name}"


def command(name: str, *arguments: object) -> str:
  """A program with its arguments, quoted for a shell."""
  return " ".join([program(name), shlex.join(map(str, arguments))]).rstrip()
