"""Cases: drawn, extreme and shown; sheets of the right size."""

import numpy as np
import pytest
from PIL import Image

from fs_jax import types
from fs_jax.evaluate.page import examples
from fs_jax.evaluate.page import sheet as sheets

CREDIT = "Drawings: <Somebody>, CC BY-SA 4.0"


def picture(seed: int = 0, size=(16, 16)) -> np.ndarray:
  draw = np.random.default_rng(seed)
  return draw.integers(0, 256, (1, *size, 3), np.uint8)


def found(*rows: tuple[int, ...]) -> types.Candidates:
  listed = np.array(rows, np.int32)
  falling = -np.arange(listed.shape[1], dtype=np.float32)
  return types.Candidates(listed, np.where(listed >= 0, falling, -np.inf))


def test_cases_are_drawn_then_the_extremes():
  queries, k = 40, 12
  positives = np.full((queries, 2), -1, np.int32)
  positives[:, 0] = 100
  fast = np.tile(np.arange(k, dtype=np.int32), (queries, 1))
  final = fast.copy()
  fast[:, 3] = final[:, 3] = 100  # rank 4 twice
  final[5], final[9] = np.arange(k), np.arange(k)  # 5: lost; 9: to rank 1
  final[9, 0] = 100
  chosen = examples.choose_cases(found(*fast), found(*final), positives, 12, 3)
  drawn, picked = chosen[:12], chosen[12:]
  assert {one.reason for one in drawn} == {"drawn by chance"}
  assert len({one.query for one in drawn}) == 12
  again = examples.choose_cases(found(*final), found(*final), positives, 12, 3)
  assert [one.query for one in again] == [one.query for one in drawn]
  assert [tuple(one) for one in picked] == [
    (5, "picked: re-ranking hurt most", 4, None),
    (9, "picked: re-ranking helped most", 4, 1),
  ]


def test_an_extreme_that_was_drawn_comes_once():
  positives = np.array([[7], [7]], np.int32)
  fast, final = found((7, 1), (1, 7)), found((1, 7), (1, 7))
  chosen = examples.choose_cases(fast, final, positives, 2)
  assert sorted(chosen) == [
    (0, "drawn by chance; also: re-ranking hurt most", 1, 2),
    (1, "drawn by chance", 2, 2),
  ]


def test_cases_show_what_was_listed():
  pictures = np.concatenate([picture(i) for i in range(8)])[:, None]
  fast, final = found((4, 2, 7, 1, 0, 3)), found((2, 4, -1, -1, -1, -1))
  positives = np.array([[2, -1]], np.int32)
  choices = examples.choose_cases(fast, final, positives, 1)[:1]
  (case,) = examples.show_cases(
    choices, ["text"], fast, final, positives, lambda rows: pictures[rows]
  )
  assert (case.before, case.after) == (2, 1)
  assert [one.true for one in case.fast] == [False, True, False, False, False]
  assert [one.true for one in case.final] == [True, False]
  assert [one.score for one in case.final] == [0, -1]
  np.testing.assert_array_equal(case.final[0].picture, pictures[2])
  np.testing.assert_array_equal(case.true, pictures[2])


def test_sheet_frames_the_true_picture(tmp_path):
  path = tmp_path / "sheet.png"
  rows = [[picture(i) for i in range(12)], [picture(0, (16, 8))]]
  sheets.draw(
    path, "a long query " * 30, rows, ["Fast", "Slow"], CREDIT, [2, None]
  )
  with Image.open(path) as image:
    sheet = np.asarray(image)
  assert sheets.SIDE * 10 < sheet.shape[1] < sheets.SIDE * 12
  assert sheets.SIDE * 2 < sheet.shape[0] < sheets.SIDE * 4
  green = np.all(sheet == (0x12, 0x7A, 0x3D), axis=-1)
  y, x = np.nonzero(green)
  column = (x.mean() - x.min()) / sheets.SIDE
  assert 0.3 < column < 0.7  # one square, not two
  edge = sheets.SIDE + 8
  assert green[y.min()].sum() == edge
  sheets.draw(path, "q", rows, ["Fast", "Slow"], CREDIT)
  with Image.open(path) as image:
    sheet = np.asarray(image)
  assert not np.all(sheet == (0x12, 0x7A, 0x3D), axis=-1).any()


def test_sheet_writes_scores_under_pictures(tmp_path):
  drawn = []
  for scores in (None, [[0.5, -1.25]], [[0.5, -1.5]]):
    path = tmp_path / f"{len(drawn)}.png"
    sheets.draw(
      path, "q", [[picture(0), picture(1)]], ["Fast"], CREDIT, scores=scores
    )
    with Image.open(path) as image:
      drawn.append(np.asarray(image))
  assert drawn[0].shape == drawn[1].shape == drawn[2].shape
  assert (drawn[0] != drawn[1]).any()
  assert (drawn[1] != drawn[2]).any()
  with pytest.raises(ValueError, match=r"\[1\] scores for \[2\] pictures"):
    sheets.draw(
      path, "q", [[picture(0), picture(1)]], ["Fast"], CREDIT, scores=[[1.0]]
    )


def test_sheet_needs_a_label_a_row(tmp_path):
  with pytest.raises(ValueError, match="2 rows, 1 labels, 2 places"):
    sheets.draw(tmp_path / "a.png", "q", [[], []], ["Fast"], CREDIT)
