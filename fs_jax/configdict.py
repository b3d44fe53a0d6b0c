"""Converts configs: typed schema, ConfigDict, JSON.

The only module that knows both the schema and ml_collections. Config files
return `edit(Config(...))`, a locked ConfigDict that flags such as
`--config.optim.learning_rate=3e-4` may change. Programs call `parse` once;
below that there are only frozen dataclasses.
"""

import dataclasses
import json
import types
import typing
from typing import Any, Literal, TypeAlias, TypeVar

import ml_collections

from fs_jax import config

ConfigDict: TypeAlias = (
  ml_collections.ConfigDict
)  # what a recipe's `get_config` returns

Schema = TypeVar("Schema")
_EXAMPLES: dict[type, Any] = {bool: True, int: 1, float: 0.1, str: "name"}


def edit(cfg: config.Config) -> ConfigDict:
  """Config -> ConfigDict, locked: a new key is an error."""
  return ConfigDict(dataclasses.asdict(cfg)).lock()


def parse(c: ConfigDict) -> config.Config:
  """ConfigDict -> Config.

  Raises:
    ValueError: an unknown key, a wrong type or option, or fields that do not
      fit each other; the message names the field, the rule and the value.
  """
  return from_dict(c.to_dict())


def from_dict(values: dict[str, Any]) -> config.Config:
  """Nested dict -> Config. Raises what `parse` raises."""
  return _build(config.Config, values, "config")


def to_json(cfg: config.Config) -> str:
  return json.dumps(dataclasses.asdict(cfg), indent=2) + "\n"


def from_json(text: str) -> config.Config:
  """Reads what `to_json` wrote.

  Raises:
    ValueError: not JSON, or JSON of another schema.
  """
  try:
    values = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(
      f"config.json: must be JSON that a run wrote; got {error}. copy it from "
      "a backup, or train again"
    ) from None
  return from_dict(values)


def differences(a: config.Config, b: config.Config) -> list[str]:
  """Lists fields in which two configs differ: "seed: 0 != 1"."""
  left, right = flatten(a), flatten(b)
  return [
    f"{key}: {left.get(key)!r} != {right.get(key)!r}"
    for key in sorted(left.keys() | right.keys())
    if left.get(key) != right.get(key)
  ]


def flatten(cfg: config.Config) -> dict[str, Any]:
  """Every field by its path: {"optim.learning_rate": 0.1, ...}.

  A field whose default depends on another field has its resolved value, so that
  configs which mean the same are equal.
  """
  fields = _flatten(dataclasses.asdict(cfg))
  return fields | {"fast.scale": cfg.fast.first_scale}


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in values.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def _build(schema: type[Schema], values: Any, path: str) -> Schema:
  if not isinstance(values, dict):
    raise ValueError(
      f"{path}: must be a group of fields; got {values!r}. set its "
      f"fields, such as {path}.{next(iter(typing.get_type_hints(schema)))}"
    )
  hints = typing.get_type_hints(schema)
  unknown = sorted(values.keys() - hints.keys())
  if unknown:
    raise ValueError(
      f"{path}: must hold its own fields only; got {unknown[0]!r}. use "
      f"one of them: {', '.join(hints)}"
    )
  needed = [
    field.name
    for field in dataclasses.fields(typing.cast(type, schema))
    if field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  ]
  missing = [name for name in needed if name not in values]
  if missing:
    raise ValueError(
      f"{path}: must have {', '.join(needed)}; got no {missing[0]!r}. "
      f"give {path}.{missing[0]} a value"
    )
  built = {
    key: _value(hints[key], value, f"{path}.{key}")
    for key, value in values.items()
  }
  try:
    return schema(**built)
  except ValueError as error:
    raise ValueError(f"{path}.{error}") from None


def _value(hint: Any, value: Any, path: str) -> Any:
  """Checks `value` against `hint`; takes ints for floats, lists for tuples."""
  if dataclasses.is_dataclass(hint):
    return _build(typing.cast(type, hint), value, path)
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    if value not in arguments:
      options = ", ".join(repr(a) for a in arguments)
      raise ValueError(
        f"{path}: must be one of {options}; got {value!r}. use one of them"
      )
    return value
  if origin is types.UnionType:
    if value is None and types.NoneType in arguments:
      return None
    (inner,) = (a for a in arguments if a is not types.NoneType)
    return _value(inner, value, path)
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise ValueError(
        f"{path}: must be a tuple; got {value!r}. put it in (...)"
      )
    if len(arguments) == 2 and arguments[1] is Ellipsis:
      arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
      raise ValueError(
        f"{path}: must have {len(arguments)} items; got {value!r}. give as many"
      )
    pairs = zip(arguments, value, strict=True)
    return tuple(_value(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(pairs))
  if hint is float and type(value) is int:
    return float(value)
  if type(value) is not hint:
    raise ValueError(
      f"{path}: must be {hint.__name__}; got {value!r}. use a value such as "
      f"{_EXAMPLES[hint]!r}"
    )
  return value
