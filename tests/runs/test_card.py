"""A model card says what its stage was, and nothing that nobody measured."""

from fs_jax.runs import card
from tests.support import synthetic

CONTRACT = {"fast": {"digest": "0123456789abcdef" * 4}, "fast_config": {"x": 1}}
LINES = (
  {"step": 2, "time": 1.0, "split": "validation", "R@1": 0.25, "R@5": 0.5},
  {"step": 4, "time": 2.0, "split": "train", "loss": 1.0},
  {"step": 4, "time": 2.0, "split": "validation", "R@1": 0.123, "R@5": 0.5},
)


def render(**changes):
  values = {
    "step": 4,
    "parameters": 1234567,
    "examples": 1500,
    "attribution": "Drawings: by somebody, CC BY-SA 4.0",
    "lines": LINES,
    "contract": CONTRACT,
    "versions": {"jax": "0.10.2", "libtpu": ""},
  }
  return card.render(synthetic.cfg("fast"), **values | changes)


def test_it_names_data_licence_metrics_and_contract():
  text = render()
  for said in (
    *("1,234,567", "1,500", "CC BY-SA 4.0", "R@1 0.123, R@5 0.5"),
    *("| fast | 0123456789abcdef |", "jax 0.10.2", "not a result"),
  ):
    assert said in text
  assert "0.25" not in text  # of a step that nobody loads
  assert "libtpu" not in text and "fast_config" not in text


def test_what_is_not_known_is_said():
  text = render(lines=LINES[1:2], attribution="")
  assert "None was measured at this step." in text
  assert "without an attribution" in text


def test_each_stage_says_what_it_is():
  texts = {
    stage: card.render(
      synthetic.cfg(stage),
      step=1,
      parameters=1,
      examples=1,
      attribution="",
      lines=(),
      contract={},
      versions={},
    )
    for stage in ("fast", "slow", "distill")
  }
  assert "captioner used as a judge" in texts["slow"]
  assert "learned from a captioner" in texts["distill"]
