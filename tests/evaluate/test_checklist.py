"""Steps: done once, and again where they or what they came from changed."""

import json

import pytest

from fs_jax.evaluate.studies import checklist

ONE, OTHER = ({"slow": {"digest": x}} for x in "ab")


def test_a_step_is_done_once(tmp_path):
  done = []
  first = checklist.Checklist(tmp_path)
  seconds = first.do("a", ONE, lambda: done.append("a"))
  again = checklist.Checklist(tmp_path)  # as another process would
  assert again.do("a", ONE, lambda: done.append("a")) == seconds
  again.do("b", ONE, lambda: done.append("b"))
  assert done == ["a", "b"]


def test_a_step_that_failed_is_done_again(tmp_path):
  def fails():
    raise ZeroDivisionError

  done = []
  some = checklist.Checklist(tmp_path)
  with pytest.raises(ZeroDivisionError):
    some.do("a", ONE, fails)
  some.do("a", ONE, lambda: done.append("a"))
  assert done == ["a"]


def test_a_step_is_done_again_with_something_else(tmp_path, capsys):
  done = []
  some = checklist.Checklist(tmp_path)
  for made_from in (ONE, OTHER, OTHER, ONE):
    some.do("a", made_from, lambda: done.append("a"))
  assert len(done) == 3
  assert "slow.digest: 'a' and 'b'" in capsys.readouterr().err


def test_a_step_is_done_again_where_what_it_made_is_gone(tmp_path):
  done = []
  for _ in range(2):
    checklist.Checklist(tmp_path).do(
      "a", ONE, lambda: done.append(1), lambda: True
    )
  assert len(done) == 2


@pytest.mark.parametrize("text", ['{"seconds": 2.5, "ended": 1.0}', "{", "[]"])
def test_a_tick_that_does_not_say_of_what_is_none(tmp_path, text):
  done = []
  path = tmp_path / "parts" / "a.json"
  path.parent.mkdir()
  path.write_text(text)
  checklist.Checklist(tmp_path).do("a", ONE, lambda: done.append("a"))
  assert done == ["a"]
  assert json.loads(path.read_text())["contract"] == ONE


def test_seconds_are_of_every_step_in_the_order_they_were_finished(tmp_path):
  some = checklist.Checklist(tmp_path)
  took = {name: some.do(name, ONE, lambda: None) for name in ("z", "b", "a")}
  assert list(some.seconds().items()) == list(took.items())
  again = checklist.Checklist(tmp_path)
  for name in ("a", "z"):
    again.do(name, ONE, lambda: None)
  assert list(again.seconds()) == ["z", "a"]
