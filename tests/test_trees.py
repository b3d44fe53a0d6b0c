"""Names of leaves, and tables of regular expressions over them."""

import jax
import numpy as np
import optax
import pytest

from fs_jax import trees

TREE = {"b": {"y": np.ones(2), "x": np.ones(1)}, "a": np.ones(3)}


def test_names_are_paths_in_the_order_of_leaves():
  assert trees.names(TREE) == ["a", "b/x", "b/y"]
  sizes = [x.size for x in jax.tree.leaves(TREE)]
  assert sizes == [3, 1, 2]


def test_names_of_an_optimiser_end_in_those_of_parameters():
  state = optax.adam(0.1).init(TREE)
  names = trees.names(state)
  for name in trees.names(TREE):
    assert sum(n.endswith("/" + name) for n in names) == 2  # mu and nu


def test_map_named_gives_name_and_leaf_and_keeps_structure():
  got = trees.map_named(lambda name, x: (name, x.size), TREE)
  assert got == {"a": ("a", 3), "b": {"x": ("b/x", 1), "y": ("b/y", 2)}}


def test_the_first_rule_that_matches_the_whole_name_wins():
  rules = (("b", 0), ("b/.*", 1), ("b/x", 2), (".*", 3))
  found = [trees.first_match(rules, n, what="rules") for n in trees.names(TREE)]
  assert found == [3, 1, 1]
  with pytest.raises(ValueError, match=r"rules: .*got none for 'a'"):
    trees.first_match(rules[:3], "a", what="rules")


@pytest.mark.parametrize(
  ("rules", "says"),
  [
    ((("b/.*", 1), ("b/x", 2), (".*", 3)), "got 'b/x'"),  # never first
    (((".*", 3), ("a", 1)), "got 'a'"),
    ((("c", 3), (".*", 1)), "got 'c'"),
    ((("(", 3), (".*", 1)), r"regular expression; got '\('"),
  ],
)
def test_a_dead_rule_is_refused(rules, says):
  with pytest.raises(ValueError, match="table: .*" + says):
    trees.check_rules(rules, trees.names(TREE), what="table")


def test_a_table_of_living_rules_passes():
  trees.check_rules((("b/x", 1), (".*", 2)), trees.names(TREE), what="table")


def test_merge_is_deep_and_changes_neither():
  into, part = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}, "c": {"z": 5}}
  assert trees.merge(into, part) == {
    "a": {"x": 1, "y": 4},
    "b": 3,
    "c": {"z": 5},
  }
  assert into == {"a": {"x": 1, "y": 2}, "b": 3}
  assert part == {"a": {"y": 4}, "c": {"z": 5}}
  assert trees.merge({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}
