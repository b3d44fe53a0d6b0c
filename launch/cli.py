"""What all programs share: flags that teach, clean errors, exit codes.

0 done    2 bad input    3 the loss diverged    75 preempted, start me again
130 interrupted          1 anything else: with its traceback, or a peer died
"""

import contextlib
import difflib
import logging
import os
import pathlib
import re
import runpy
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging

from fs_jax.machine import errors, processes

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_OWN = tuple(str(_ROOT / name) + os.sep for name in ("fs_jax", "launch"))
# Groups of the config that all stages of a workdir have in common.
_SHARED = ("data", "tokens", "fast", "slow", "seed", "compute", "mesh")


def run(main: Callable[[Sequence[str]], None], doc: str | None) -> None:
  """Runs a program: parses its flags, calls it, leaves with an exit code."""
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
    # JAX would wait for them to leave as well, which they do not: the launcher
    # ends them as soon as it sees this code.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


def call(
  main: Callable[[Sequence[str]], None],
  doc: str | None,
  argv: Sequence[str],
) -> int:
  """Exit code of main(positional arguments); says what went wrong."""
  _quiet()
  if any(a in ("-h", "--help", "-help", "--helpshort") for a in argv[1:]):
    print(_help(main, doc))
    return errors.DONE
  with _told_to_stop():
    return _call(main, argv)


def need(*names: str) -> None:
  """Refuses to go on without these flags.

  Raises:
    ValueError: the first that is missing.
  """
  for name in names:
    if flags.FLAGS[name].value in (None, ""):
      raise ValueError(
        f"--{name}: must be given, {flags.FLAGS[name].help}; got nothing. "
        "--help shows an example"
      )


def config_command(stage: str) -> list[str]:
  """--config and its edits as they were typed, for another stage.

  Edits of what belongs to one stage, such as its steps, are left out.
  """
  words = []
  for name, value in _given(sys.argv, "config"):
    if name == "config":
      words.append(f"--config={value.split(':')[0]}:{stage}")
    elif name.split(".")[1] in _SHARED:
      words.append(f"--{name}={value}")
  return words


def config_words() -> list[str]:
  """--config and all its edits as they were typed, for another machine."""
  return [f"--{name}={value}" for name, value in _given(sys.argv, "config")]


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
      f"arguments: one is wanted, in quotes if it has spaces; got {len(argv)}. "
      f"{usage}"
    )
  return argv[0]


def _call(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
  try:
    main(_parse(argv))
  except (KeyboardInterrupt, errors.Preempted) as error:
    gone = isinstance(error, errors.Preempted)
    said = "preempted" if gone else "\ninterrupted"
    print(f"{said}: start it again and it goes on", file=sys.stderr)
    return errors.PREEMPTED if gone else errors.INTERRUPTED
  except (ValueError, OSError, flags.Error) as error:
    if not _is_input(error):
      raise
    print(f"error: {_sentence(error)}", file=sys.stderr)
    return errors.BAD_INPUT
  except errors.NonFinite as error:
    print(f"error: {error}", file=sys.stderr)
    return errors.DIVERGED
  return errors.DONE


def _parse(argv: Sequence[str]) -> list[str]:
  """Sets the flags; returns what is left of the arguments.

  Raises:
    ValueError: a config that is not there, or has no such stage or field.
    flags.Error: any other wrong flag.
  """
  argv = _with_packaged(argv)
  if "config" in flags.FLAGS:
    _check_config(_given(argv, "config"))
  rest = flags.FLAGS(argv, known_only=False)
  flags.FLAGS.mark_as_parsed()
  return rest[1:]


def _with_packaged(argv: Sequence[str]) -> list[str]:
  """`_packaged` of every word, `--config scenes:fast` in two words as well."""
  words = list(argv)
  for at in range(len(words) - 1, 0, -1):
    if words[at - 1] in ("--config", "-config"):
      words[at - 1 : at + 1] = [f"--config={words[at]}"]
  return [_packaged(word) for word in words]


def _packaged(word: str) -> str:
  """`--config=scenes:fast` with the path of the recipe that it names."""
  found = re.fullmatch(r"--?config=([a-z]\w*)((?::.*)?)", word)
  if not found or pathlib.Path(found[1]).is_file():
    return word
  path = _ROOT / "configs" / f"{found[1]}.py"
  return f"--config={path}{found[2]}" if path.is_file() else word


def _given(argv: Sequence[str], prefix: str) -> list[tuple[str, str]]:
  """(name, value) of the flags `prefix` and `prefix.*`, as typed."""
  found = []
  for at, argument in enumerate(argv[1:], 1):
    name, equals, value = argument.lstrip("-").partition("=")
    if argument.startswith("-") and name.split(".")[0] == prefix:
      if not equals:
        value = argv[at + 1] if at + 1 < len(argv) else ""
      found.append((name, value))
  return found


def _check_config(given: list[tuple[str, str]]) -> None:
  """Says what ml_collections reports as KeyError, AttributeError and such.

  Raises:
    ValueError: no such file, stage or field.
  """
  for name, value in given:
    if name == "config":
      path, _, stage = value.partition(":")
      if not pathlib.Path(path).is_file():
        there = ", ".join(
          p.stem for p in sorted((_ROOT / "configs").glob("[!_]*.py"))
        )
        raise ValueError(
          "--config: must be a file <path>.py:<stage>, or a recipe of the "
          f"package; got {path!r}, which is neither. its recipes: {there}"
        )
      get_config = runpy.run_path(path).get("get_config")
      if get_config is None:
        raise ValueError(
          f"--config: its file must define get_config(stage); got {path!r} "
          "without. configs/scenes.py is an example"
        )
      try:
        config = get_config(*([stage] if stage else []))
      except KeyError:
        raise ValueError(
          f"--config: must name a stage of {path}; got {stage!r}. "
          f"{get_config.__doc__ or 'see that file'}"
        ) from None
      break
  else:
    return
  for name, _ in given:
    if name != "config":
      _check_field(config.to_dict(), name)


def _check_field(values: Any, name: str) -> None:
  """Walks values by a name such as config.optim.learning_rate."""
  where, *keys = name.split(".")
  for key in keys:
    key = key.split("[")[0]  # decay[0] is an item of a tuple
    if isinstance(values, Mapping) and key in values:
      values, where = values[key], f"{where}.{key}"
      continue
    fields = list(values) if isinstance(values, Mapping) else []
    if not fields:
      raise ValueError(
        f"--{name}: must name a field; got {where}, which has none. "
        f"set --{where}=... itself"
      )
    alike = difflib.get_close_matches(key, fields, n=1)
    meant = f"did you mean {alike[0]!r}? " if alike else ""
    raise ValueError(
      f"--{name}: must name a field of {where}; got {key!r}. {meant}its "
      f"fields: {', '.join(fields)}"
    )
  if isinstance(values, Mapping):
    raise ValueError(
      f"--{name}: must name a single field; got a group. its fields: "
      f"{', '.join(values)}"
    )


def _is_input(error: BaseException) -> bool:
  """Whether the user can mend it.

  A ValueError that this project raised is about input; one from inside a
  library is a bug of ours, and needs its traceback.
  """
  if isinstance(error, flags.Error):
    return True
  if isinstance(error, OSError):  # one that only says so is this project's own
    if isinstance(error, ConnectionError | TimeoutError):  # it passes
      return False
    return error.errno is None or error.errno in errors.MENDABLE
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  if trace is None:
    return True
  return os.path.realpath(trace.tb_frame.f_code.co_filename).startswith(_OWN)


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
  """ "flag --k=x: invalid literal..." by our rule for messages."""
  found = re.match(r"flag --(\S+?)=(.*?): (.*)", text, re.DOTALL)
  if not found:
    return text
  name, value, why = found.groups()
  rules = {
    "could not convert string to float": "must be a number",
    "invalid literal for int": "must be a whole number",
    "Non-boolean": "must be true or false",
  }
  for theirs, ours in rules.items():
    if theirs in why:
      why = ours
  why = re.sub(r"^\S+ is not ", "must be ", why.strip().rstrip("."))
  return f"--{name}: {why}; got {value!r}. change it, --help says what it is"


def _help(main: Callable, doc: str | None) -> str:
  """The module's docstring and its own flags, without those of libraries."""
  module = sys.modules[main.__module__]
  lines = [(doc or "").strip(), "", "flags:"]
  own = flags.FLAGS.flags_by_module_dict().get(module.__name__, [])
  own = own or flags.FLAGS.flags_by_module_dict().get(sys.argv[0], [])
  for flag in sorted(own, key=lambda f: f.name):
    default = "" if flag.default in (None, "") else f" (default {flag.default})"
    lines.append(f"  --{flag.name}: {flag.help}{default}")
  return "\n".join([*lines, "", _CODES])


_CODES = (
  "exit codes: 0 done, 2 bad input, 3 the loss diverged, 75 preempted (start "
  "it\nagain), 130 interrupted, 1 a bug or a lost peer. NO_QUIET=1 shows what "
  "libraries\nlog."
)


@contextlib.contextmanager
def _told_to_stop() -> Iterator[None]:
  """SIGTERM is how machines are taken away: it ends as Preempted."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def preempt(*_: object) -> None:
    raise errors.Preempted

  before = signal.signal(signal.SIGTERM, preempt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _has_peers() -> bool:
  """Whether this process joined others; asks nothing of a device."""
  return jax.distributed.is_initialized()


def _with_peers(code: int) -> int:
  """What bad input is where others run: one that died can look like it.

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
  """Says less of what libraries say; NO_QUIET=1 shows everything."""
  if os.environ.get("NO_QUIET"):
    return
  absl_logging.set_verbosity(absl_logging.ERROR)
  logging.getLogger("jax").setLevel(logging.ERROR)
  warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
