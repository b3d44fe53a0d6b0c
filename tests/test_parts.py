"""Parts: done once, done again only where they were not finished."""

import pytest

from fs_jax import parts


def test_a_part_is_done_once(tmp_path):
  done = []
  first = parts.Parts(tmp_path)
  seconds = first.do("a", lambda: done.append("a"))
  again = parts.Parts(tmp_path)  # as another process would
  assert again.do("a", lambda: done.append("a")) == seconds
  again.do("b", lambda: done.append("b"))
  assert done == ["a", "b"]


def test_a_part_that_failed_is_done_again(tmp_path):
  def fails():
    raise ZeroDivisionError

  done = []
  some = parts.Parts(tmp_path)
  with pytest.raises(ZeroDivisionError):
    some.do("a", fails)
  some.do("a", lambda: done.append("a"))
  assert done == ["a"]


def test_seconds_are_of_every_part_in_the_order_they_were_finished(tmp_path):
  some = parts.Parts(tmp_path)
  took = {name: some.do(name, lambda: None) for name in ("z", "b", "a")}
  assert list(some.seconds().items()) == list(took.items())
