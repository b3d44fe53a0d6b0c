"""Shared by all programs: --help, clean errors, exit codes.

0 done    2 bad input    3 the loss diverged    75 preempted: start it again
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
# Groups of the config that the stages of a workdir share.
_SHARED = ("data", "tokens", "fast", "slow", "seed", "compute", "mesh")


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


def config_words_for(stage: str) -> list[str]:
  """--config and its edits as they were typed, for another stage.

  Leaves out the edits that concern one stage only, such as its steps.
  """
  words = []
  for name, value in _given(sys.argv, "config"):
    if name == "config":
      words.append(f"--config={value.split(':')[0]}:{stage}")
    elif name.split(".")[1] in _SHARED:
      words.append(f"--{name}={value}")
  return words


def config_words() -> list[str]:
  """--config and all its edits as they were typed."""
  return [f"--{name}={value}" for name, value in _given(sys.argv, "config")]


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
    if not _is_input(error):
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
  argv = _resolve_recipes(argv)
  if "config" in flags.FLAGS:
    _check_config(_given(argv, "config"))
  rest = flags.FLAGS(argv, known_only=False)
  flags.FLAGS.mark_as_parsed()
  return rest[1:]


def _resolve_recipes(argv: Sequence[str]) -> list[str]:
  """Replaces a recipe's name with its path, in one word or in two.

  `--config=scenes:fast` and `--config scenes:fast` are the same.
  """
  words = list(argv)
  for i in range(len(words) - 1, 0, -1):
    if words[i - 1] in ("--config", "-config"):
      words[i - 1 : i + 1] = [f"--config={words[i]}"]
  return [_resolve_recipe(word) for word in words]


def _resolve_recipe(word: str) -> str:
  match = re.fullmatch(r"--?config=([a-z]\w*)((?::.*)?)", word)
  if not match or pathlib.Path(match[1]).is_file():
    return word
  path = _ROOT / "configs" / f"{match[1]}.py"
  return f"--config={path}{match[2]}" if path.is_file() else word


def _given(argv: Sequence[str], prefix: str) -> list[tuple[str, str]]:
  """(name, value) of the flags `prefix` and `prefix.*`, as typed."""
  pairs = []
  for i, argument in enumerate(argv[1:], 1):
    name, equals, value = argument.lstrip("-").partition("=")
    if argument.startswith("-") and name.split(".")[0] == prefix:
      if not equals:
        value = argv[i + 1] if i + 1 < len(argv) else ""
      pairs.append((name, value))
  return pairs


def _check_config(given: list[tuple[str, str]]) -> None:
  """Checks first what ml_collections reports as KeyError, AttributeError, ...

  Raises:
    ValueError: no such file, stage or field.
  """
  for name, value in given:
    if name == "config":
      config = _load_config(value)
      break
  else:
    return
  for name, _ in given:
    if name != "config":
      _check_field(config.to_dict(), name)


def _load_config(word: str) -> Any:
  """The ConfigDict that <path>.py:<stage> names."""
  path, _, stage = word.partition(":")
  if not pathlib.Path(path).is_file():
    recipes = ", ".join(
      p.stem for p in sorted((_ROOT / "configs").glob("[!_]*.py"))
    )
    raise ValueError(
      "--config: must be a file <path>.py:<stage>, or a recipe of the "
      f"package; got {path!r}, which is neither. name a file, or one of "
      f"{recipes}"
    )
  get_config = runpy.run_path(path).get("get_config")
  if get_config is None:
    raise ValueError(
      f"--config: its file must define get_config(stage); got {path!r} "
      "without. add one: configs/scenes.py is an example"
    )
  try:
    return get_config(*([stage] if stage else []))
  except KeyError:
    raise ValueError(
      f"--config: must name a stage of {path}; got {stage!r}. "
      f"{get_config.__doc__ or 'see that file'}"
    ) from None


def _check_field(values: Any, name: str) -> None:
  """Checks that values have a field such as config.optim.learning_rate."""
  group, *keys = name.split(".")
  for key in keys:
    key = key.split("[")[0]  # decay[0] is an item of a tuple
    if isinstance(values, Mapping) and key in values:
      values, group = values[key], f"{group}.{key}"
      continue
    fields = list(values) if isinstance(values, Mapping) else []
    if not fields:
      raise ValueError(
        f"--{name}: must name a field; got {group}, which has none. "
        f"set --{group}=... itself"
      )
    alike = difflib.get_close_matches(key, fields, n=1)
    meant = f"did you mean {alike[0]!r}? " if alike else ""
    raise ValueError(
      f"--{name}: must name a field of {group}; got {key!r}. {meant}its "
      f"fields: {', '.join(fields)}"
    )
  if isinstance(values, Mapping):
    raise ValueError(
      f"--{name}: must name a single field; got a group. its fields: "
      f"{', '.join(values)}"
    )


def _is_input(error: BaseException) -> bool:
  """Whether the user can fix it.

  A ValueError that this project raises is about input; one from inside a
  library is our bug, and needs its traceback.
  """
  if isinstance(error, flags.Error):
    return True
  if isinstance(error, OSError):
    if isinstance(error, ConnectionError | TimeoutError):  # it passes
      return False
    # An OSError without errno is this project's own.
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
