"""The console command of an installed package: fs-jax <program> ...

  fs-jax search "a big fox left of a car" --workdir=G
  fs-jax train --config=scenes:fast --workdir=W

The programs are those of `python -m launch.<program>`. `--config=scenes:fast`
names a recipe of the package; a path to your own recipe works too.
"""

import ast
import difflib
import pathlib
import runpy
import sys

from fs_jax import __version__
from fs_jax.machine import errors

FOLDER = pathlib.Path(__file__).parent
_NOT_PROGRAMS = ("__init__", "cli", "console", "recipes")


def list_programs() -> dict[str, str]:
  """Each program's name, with the first line of its docstring."""
  summaries = {}
  for path in sorted(FOLDER.glob("*.py")):
    if path.stem not in _NOT_PROGRAMS:
      doc = ast.get_docstring(ast.parse(path.read_text())) or ""
      summaries[path.stem] = doc.partition("\n")[0]
  return summaries


def main() -> None:
  """Runs the program that the first argument names."""
  programs = list_programs()
  name = sys.argv[1] if len(sys.argv) > 1 else ""
  if name in ("--version", "-V"):
    print(f"fs-jax {__version__}")
    return
  if name in ("", "-h", "--help", "help"):
    print(__doc__)
    width = max(map(len, programs))
    for program, summary in programs.items():
      print(f"  {program:<{width}}  {summary}")
    print("\nfs-jax <program> --help explains each of them")
    return
  name = name.replace("-", "_")
  if name not in programs:
    alike = difflib.get_close_matches(name, programs, n=1)
    meant = f"did you mean {alike[0]!r}? " if alike else ""
    print(
      f"error: program: must be one of {', '.join(programs)}; got {name!r}. "
      f"{meant}fs-jax --help lists them",
      file=sys.stderr,
    )
    sys.exit(errors.BAD_INPUT)
  sys.argv = [sys.argv[0], *sys.argv[2:]]
  runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
  main()
