"""The console command of an installed package: fs-jax <program> ...

  fs-jax search "a big fox left of a car" --workdir=G
  fs-jax train --config=scenes:fast --workdir=W

The programs are those of `python -m launch.<program>`. `--config=scenes:fast`
names a recipe that the package brings; a path to one of your own works too.
"""

import ast
import difflib
import pathlib
import runpy
import sys

from fs_jax import __version__
from fs_jax.machine import errors

FOLDER = pathlib.Path(__file__).parent
_NOT = ("__init__", "cli", "console")


def programs() -> dict[str, str]:
  """Name -> the first line of what it says of itself."""
  found = {}
  for path in sorted(FOLDER.glob("*.py")):
    if path.stem not in _NOT:
      said = ast.get_docstring(ast.parse(path.read_text())) or ""
      found[path.stem] = said.partition("\n")[0]
  return found


def main() -> None:
  """Runs the program that the first argument names."""
  listed = programs()
  name = sys.argv[1] if len(sys.argv) > 1 else ""
  if name in ("--version", "-V"):
    print(f"fs-jax {__version__}")
    return
  if name in ("", "-h", "--help", "help"):
    print(__doc__)
    width = max(map(len, listed))
    for program, said in listed.items():
      print(f"  {program:<{width}}  {said}")
    print("\nfs-jax <program> --help teaches each of them")
    return
  name = name.replace("-", "_")
  if name not in listed:
    alike = difflib.get_close_matches(name, listed, n=1)
    meant = f"did you mean {alike[0]!r}? " if alike else ""
    print(
      f"error: program: must be one of {', '.join(listed)}; got {name!r}. "
      f"{meant}fs-jax --help lists them",
      file=sys.stderr,
    )
    sys.exit(errors.BAD_INPUT)
  sys.argv = [sys.argv[0], *sys.argv[2:]]
  runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
  main()
