"""Names of the leaves of a parameter tree, and regex tables over them."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax

Value = TypeVar("Value")


def name(path: tuple[Any, ...]) -> str:
  """Key path of a leaf -> "fast/vision/blocks/mlp/up/kernel"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def names(tree: Any) -> list[str]:
  """Names of all leaves, in the tree's own order."""
  return [name(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_named(fn: Callable[[str, Any], Any], tree: Any) -> Any:
  """Like `jax.tree.map`, the leaf's name first."""
  return jax.tree_util.tree_map_with_path(lambda p, x: fn(name(p), x), tree)


def first_match(
  rules: Iterable[tuple[str, Value]], leaf: str, *, what: str
) -> Value:
  """Value of the first rule whose regex matches the whole name.

  Raises:
    ValueError: no rule matches.
  """
  for pattern, value in rules:
    if re.fullmatch(pattern, leaf):
      return value
  raise ValueError(
    f"{what}: every parameter needs a rule; got none for {leaf!r}. "
    f"add a rule for it, or a last one ('.*', ...)"
  )


def check_rules(
  rules: Iterable[tuple[str, Any]], leaves: Iterable[str], *, what: str
) -> None:
  """Refuses a rule that is never the first to match: it has no effect.

  Raises:
    ValueError: a dead rule, or a regex that does not compile.
  """
  rules, leaves = list(rules), list(leaves)
  for pattern, _ in rules:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(
        f"{what}: a rule is a regular expression; got {pattern!r} ({error})"
      ) from None
  used = set()
  for leaf in leaves:
    for i, (pattern, _) in enumerate(rules):
      if re.fullmatch(pattern, leaf):
        used.add(i)
        break
  for i, (pattern, _) in enumerate(rules):
    if i not in used:
      raise ValueError(
        f"{what}: every rule must place a parameter; got {pattern!r}, which is "
        f"the first match of none of {len(leaves)}. remove it or move it up"
      )


def select(tree: Mapping, keep: Callable[[str], bool]) -> dict:
  """The leaves of nested dicts whose names `keep` wants."""

  def walk(part: Mapping, prefix: str) -> dict:
    selected = {}
    for key, value in part.items():
      own = f"{prefix}{key}"
      if isinstance(value, Mapping):
        if below := walk(value, f"{own}/"):
          selected[key] = below
      elif keep(own):
        selected[key] = value
    return selected

  return walk(tree, "")


def nest(name: str, leaf: Any) -> dict:
  """Nested dicts from a name: "a/b" -> {"a": {"b": leaf}}."""
  head, _, rest = name.partition("/")
  return {head: nest(rest, leaf) if rest else leaf}


def merge(into: Mapping, part: Mapping) -> dict:
  """Nested dicts, `part` winning; neither argument changes."""
  merged = dict(into)
  for key, value in part.items():
    old = merged.get(key)
    if isinstance(old, Mapping) and isinstance(value, Mapping):
      value = merge(old, value)
    merged[key] = value
  return merged
