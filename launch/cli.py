"""What all programs share: flags that teach, clean errors, exit codes.

0 done    2 bad input    3 the loss diverged    75 preempted, start me again
130 interrupted          1 anything else, with its traceback
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from absl import flags
from absl import logging as absl_logging

DONE, FAILED, BAD_INPUT, DIVERGED, PREEMPTED, INTERRUPTED = 0, 1, 2, 3, 75, 130


def run(main: Callable[[Sequence[str]], None], doc: str | None) -> None:
  """Runs a program: parses its flags, calls it, leaves with an exit code."""
  sys.exit(call(main, doc, sys.argv))


def call(
  main: Callable[[Sequence[str]], None],
  doc: str | None,
  argv: Sequence[str],
) -> int:
  """Exit code of main(positional arguments); says what went wrong."""
  _quiet()
  if any(a in ("-h", "--help", "-help", "--helpshort") for a in argv[1:]):
    print(_help(main, doc))
    return DONE
  try:
    rest = flags.FLAGS(list(argv), known_only=False)
    flags.FLAGS.mark_as_parsed()
    main(rest[1:])
  except KeyboardInterrupt:
    print("\ninterrupted: start it again to go on", file=sys.stderr)
    return INTERRUPTED
  except (ValueError, OSError, flags.Error, AttributeError, KeyError) as error:
    if not _is_input(error):
      raise
    print(f"error: {_sentence(error)}", file=sys.stderr)
    return BAD_INPUT
  except ArithmeticError as error:  # report.NonFinite
    print(f"error: {error}", file=sys.stderr)
    return DIVERGED
  return DONE


def need(*names: str) -> None:
  """Refuses to go on without these flags.

  Raises:
    ValueError: the first that is missing.
  """
  for name in names:
    if flags.FLAGS[name].value in (None, ""):
      raise ValueError(
        f"--{name}: must be given; got nothing. "
        f"{flags.FLAGS[name].help}; --help shows an example"
      )


def flag_text(name: str) -> str:
  """A flag as it was typed."""
  for argument in sys.argv[1:]:
    if argument.startswith(f"--{name}="):
      return argument.split("=", 1)[1]
  return name


def then(*lines: str) -> None:
  """Says what a user would do next."""
  print("next:")
  for line in lines:
    print(f"  {line}")


def only(argv: Sequence[str], usage: str) -> str:
  """The one positional argument.

  Raises:
    ValueError: none, or several.
  """
  if len(argv) != 1:
    raise ValueError(
      f"arguments: one is wanted; got {len(argv)}. {usage}; quote it if it "
      "has spaces"
    )
  return argv[0]


def _is_input(error: BaseException) -> bool:
  """Whether the user can mend it: not so for a bug of ours.

  ConfigDict reports a wrong key as AttributeError or KeyError and a wrong type
  as TypeError; from anywhere else these are bugs.
  """
  if isinstance(error, (ValueError, OSError, flags.Error)):
    return True
  return "config" in str(error).lower() or "Did you mean" in str(error)


def _sentence(error: BaseException) -> str:
  text = str(error.args[0] if isinstance(error, KeyError) else error)
  if isinstance(error, flags.UnrecognizedFlagError):
    return f"{text}. --help lists the flags"
  if isinstance(error, FileNotFoundError) and error.filename:
    return f"{error.filename}: must exist; got no such file. check the path"
  return " ".join(text.split())


def _help(main: Callable, doc: str | None) -> str:
  """The module's docstring and its own flags, without those of libraries."""
  module = sys.modules[main.__module__]
  lines = [(doc or "").strip(), "", "flags:"]
  own = flags.FLAGS.flags_by_module_dict().get(module.__name__, [])
  own = own or flags.FLAGS.flags_by_module_dict().get(sys.argv[0], [])
  for flag in sorted(own, key=lambda f: f.name):
    default = "" if flag.default in (None, "") else f" (default {flag.default})"
    lines.append(f"  --{flag.name}: {flag.help}{default}")
  return "\n".join(lines)


def _quiet() -> None:
  """Says less of what libraries say; NO_QUIET=1 shows everything."""
  if os.environ.get("NO_QUIET"):
    return
  absl_logging.set_verbosity(absl_logging.ERROR)
  logging.getLogger("jax").setLevel(logging.ERROR)
  warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
