"""--config and its edits: recipes by name, checked, and repeated as typed."""

import difflib
import pathlib
import re
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# Groups of the config that the stages of a workdir share.
_SHARED = ("data", "tokens", "fast", "slow", "seed", "compute", "mesh")


def words_for(stage: str) -> list[str]:
  """--config and its edits as they were typed, for another stage.

  Leaves out the edits that concern one stage only, such as its steps.
  """
  typed = []
  for name, value in _read_flags(sys.argv, "config"):
    if name == "config":
      typed.append(f"--config={value.split(':')[0]}:{stage}")
    elif name.split(".")[1] in _SHARED:
      typed.append(f"--{name}={value}")
  return typed


def words() -> list[str]:
  """--config and all its edits as they were typed."""
  return [
    f"--{name}={value}" for name, value in _read_flags(sys.argv, "config")
  ]


def resolve(argv: Sequence[str]) -> list[str]:
  """Replaces a recipe's name with its path, in one word or in two.

  `--config=scenes:fast` and `--config scenes:fast` are the same.
  """
  typed = list(argv)
  for i in range(len(typed) - 1, 0, -1):
    if typed[i - 1] in ("--config", "-config"):
      typed[i - 1 : i + 1] = [f"--config={typed[i]}"]
  return [_resolve_word(word) for word in typed]


def _resolve_word(word: str) -> str:
  match = re.fullmatch(r"--?config=([a-z]\w*)((?::.*)?)", word)
  if not match or pathlib.Path(match[1]).is_file():
    return word
  path = _ROOT / "configs" / f"{match[1]}.py"
  return f"--config={path}{match[2]}" if path.is_file() else word


def _read_flags(argv: Sequence[str], prefix: str) -> list[tuple[str, str]]:
  """(name, value) of the flags `prefix` and `prefix.*`, as typed."""
  pairs = []
  for i, argument in enumerate(argv[1:], 1):
    name, equals, value = argument.lstrip("-").partition("=")
    if argument.startswith("-") and name.split(".")[0] == prefix:
      if not equals:
        value = argv[i + 1] if i + 1 < len(argv) else ""
      pairs.append((name, value))
  return pairs


def check(argv: Sequence[str]) -> None:
  """Checks --config and its edits, before ml_collections parses them.

  It would report mistakes as KeyError, AttributeError and the like.

  Raises:
    ValueError: no such file, stage or field.
  """
  pairs = _read_flags(argv, "config")
  for name, value in pairs:
    if name == "config":
      config = _load_config(value)
      break
  else:
    return
  for name, _ in pairs:
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
