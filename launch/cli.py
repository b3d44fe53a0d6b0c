"""Shared by all programs: --help, clean errors, exit codes.

0 done    2 bad input    3 the loss diverged    75 preempted: start it again
130 interrupted          1 anything else: with its traceback, or a peer died
"""

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import flags
from absl import logging as absl_logging

from fs_jax.machine import errors, processes
from launch import recipes


def run(main: Callable[[Sequence[str]], None], doc: str | None) -> None:
  """Runs a program: parses its flags, calls it, exits with its code."""
  try:
    code = call(main, doc, sys.argv)
  except Exception:
    if not _has_peers():
      raise
    traceback.print_exc()
    code = errors.FAILED
  if code == errors.BAD_INPUT and _has_peers():
    code = _with_peers(code)
  if code != errors.DONE and _has_peers():
    # A plain exit would wait in JAX for the peers to exit too, which they do
    # not: the launcher ends them as soon as it sees this code.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


def call(
  main: Callable[[Sequence[str]], None],
  doc: str | None,
  argv: Sequence[str],
) -> int:
  """Calls main(positional arguments); prints errors, returns the exit code."""
  _quiet()
  if any(a in ("-h", "--help", "-help", "--helpshort") for a in argv[1:]):
    print(_help(main, doc))
    return errors.DONE
  with _preempt_on_sigterm():
    return _call(main, argv)


def need(*names: str) -> None:
  """Requires these flags.

  Raises:
    ValueError: a flag is missing; names the first.
  """
  for name in names:
    if flags.FLAGS[name].value in (None, ""):
      raise ValueError(
        f"--{name}: must be given, {flags.FLAGS[name].help}; got nothing. "
        "--help shows an example"
      )


def flag_words(*names: str) -> list[str]:
  """--name=value of these flags, without those that are empty."""
  return [
    f"--{name}={flags.FLAGS[name].value}"
    for name in names
    if flags.FLAGS[name].value
  ]


def print_next(*lines: str) -> None:
  """Prints the commands that a user would run next."""
  print("next:")
  for line in lines:
    print(f"  {line}")


def take_argument(argv: Sequence[str], usage: str) -> str:
  """Returns the only positional argument.

  Raises:
    ValueError: there are none, or several.
  """
  if len(argv) != 1:
    raise ValueError(
      f"arguments: one is wanted, in quotes if it has spaces; got {len(argv)}. "
      f"{usage}"
    )
  return argv[0]


def _call(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
  try:
    main(_parse(argv))
  except (KeyboardInterrupt, errors.Preempted) as error:
    preempted = isinstance(error, errors.Preempted)
    reason = "preempted" if preempted else "\ninterrupted"
    print(f"{reason}: start it again and it continues", file=sys.stderr)
    return errors.PREEMPTED if preempted else errors.INTERRUPTED
  except (ValueError, OSError, flags.Error) as error:
    if not (isinstance(error, flags.Error) or errors.is_input(error)):
      raise
    print(f"error: {_sentence(error)}", file=sys.stderr)
    return errors.BAD_INPUT
  except errors.NonFinite as error:
    print(f"error: {error}", file=sys.stderr)
    return errors.DIVERGED
  return errors.DONE


def _parse(argv: Sequence[str]) -> list[str]:
  """Sets the flags; returns the positional arguments.

  Raises:
    ValueError: the config does not exist, or lacks the stage or field.
    flags.Error: any other flag is wrong.
  """
  argv = recipes.resolve(argv)
  if "config" in flags.FLAGS:
    recipes.check(argv)
  rest = flags.FLAGS(argv, known_only=False)
  flags.FLAGS.mark_as_parsed()
  return rest[1:]


def _sentence(error: BaseException) -> str:
  if isinstance(error, flags.UnrecognizedFlagError):
    _, _, alike = str(error).partition("Did you mean: ")
    meant = f"did you mean --{alike.strip(' ?')}? " if alike else ""
    return (
      f"--{error.flagname}: must be a flag of this program; got an unknown "
      f"one. {meant}--help lists them"
    )
  if isinstance(error, flags.IllegalFlagValueError):
    return _wrong_value(str(error))
  if isinstance(error, OSError) and error.filename and error.strerror:
    return (
      f"{os.fspath(error.filename)}: must be a file or folder that can be "
      f"used; got {error.strerror!r}. check the path"
    )
  return " ".join(str(error).split())


def _wrong_value(text: str) -> str:
  """Rewrites absl's "flag --k=x: invalid literal..." as our messages are."""
  match = re.match(r"flag --(\S+?)=(.*?): (.*)", text, re.DOTALL)
  if not match:
    return text
  name, value, why = match.groups()
  rules = {
    "could not convert string to float": "must be a number",
    "invalid literal for int": "must be a whole number",
    "Non-boolean": "must be true or false",
  }
  for theirs, ours in rules.items():
    if theirs in why:
      why = ours
  why = re.sub(r"^\S+ is not ", "must be ", why.strip().rstrip("."))
  return f"--{name}: {why}; got {value!r}. --help says what the flag takes"


def _help(main: Callable[..., None], doc: str | None) -> str:
  """The module's docstring and flags, without the flags of libraries."""
  module = sys.modules[main.__module__]
  lines = [(doc or "").strip(), ""]
  own = flags.FLAGS.flags_by_module_dict().get(module.__name__, [])
  own = own or flags.FLAGS.flags_by_module_dict().get(sys.argv[0], [])
  if own:
    lines.append("flags:")
    for flag in sorted(own, key=lambda f: f.name):
      lines.append(f"  --{flag.name}: {flag.help}{_default(flag)}")
    lines.append("")
  return "\n".join([*lines, _CODES])


def _default(flag: flags.Flag) -> str:
  if flag.default is None or flag.default is False or flag.default == "":
    return ""
  if isinstance(flag.default, list):
    return f" (default {','.join(flag.default)})"
  return f" (default {flag.default})"


_CODES = (
  "exit codes: 0 done, 2 bad input, 3 the loss diverged, 75 preempted (start "
  "it\nagain), 130 interrupted, 1 a bug or a lost peer. NO_QUIET=1 shows what "
  "libraries\nlog."
)


@contextlib.contextmanager
def _preempt_on_sigterm() -> Iterator[None]:
  """Raises Preempted on SIGTERM, which announces that the machine goes away."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def preempt(*_: object) -> None:
    raise errors.Preempted

  previous = signal.signal(signal.SIGTERM, preempt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous)


def _has_peers() -> bool:
  """Whether this process joined others; does not touch a device."""
  return jax.distributed.is_initialized()


def _with_peers(code: int) -> int:
  """The exit code for bad input among peers: a peer's death can look like it.

  A supervisor on this machine sees all deaths itself, and sooner.
  """
  if processes.SUPERVISOR in os.environ:
    return code
  print("waiting to hear whether a peer died", file=sys.stderr, flush=True)
  try:
    if processes.all_live():
      return code
  except KeyboardInterrupt:
    return errors.INTERRUPTED
  print("a peer died, which may be why: start again", file=sys.stderr)
  return errors.FAILED


def _quiet() -> None:
  """Silences most of what libraries log; NO_QUIET=1 shows everything."""
  if os.environ.get("NO_QUIET"):
    return
  absl_logging.set_verbosity(absl_logging.ERROR)
  logging.getLogger("jax").setLevel(logging.ERROR)
  warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
