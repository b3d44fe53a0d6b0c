"""Plans in words: lines, rows and the table they make."""

import pytest

from fs_jax.train.plan import plan, render
from tests.train.test_plan import made


def test_a_table_is_rewritten_between_its_markers():
  text = f"before\n{render.BEGIN}\nold\n{render.END}\nafter\n"
  new = render.rewrite(text, "| new |")
  assert new == f"before\n{render.BEGIN}\n| new |\n{render.END}\nafter\n"
  assert render.rewrite(new, "| new |") == new


@pytest.mark.parametrize(
  "text", ["", render.BEGIN, render.END, f"{render.END} {render.BEGIN}"]
)
def test_a_text_without_markers_is_left_alone(text):
  with pytest.raises(ValueError, match=r"must hold .*put both lines back"):
    render.rewrite(text, "| new |")


REFUSED = made(
  memory=plan.Memory(0, 20 * 2**30, 15 * 2**30), times=None, validation=None
)


@pytest.mark.parametrize("it", [made(), REFUSED])
def test_a_row_has_the_table_s_columns(it):
  row = render.row(it)
  assert len(row) == len(render.COLUMNS)
  lines = render.table([row]).splitlines()
  assert len({line.count("|") for line in lines}) == 1
  assert lines[0].startswith("| config | topology |")


def test_a_row_and_a_summary_say_what_fits():
  row = dict(zip(render.COLUMNS, render.row(made()), strict=True))
  assert row["config"] == "x.py:fast"
  assert row["mesh"] == "data=4 fsdp=2"
  assert row["GiB/chip of"] == "2.00 / 15.75"
  assert (row["step s"], row["bound by"]) == ("2.000", "compute")
  assert (row["MFU"], row["days"]) == ("50%", "1.00")
  said = render.summarize(made())
  assert "fits: 2.00 of 15.75 GiB a chip" in said
  assert "8 chips as data 4 x fsdp 2" in said


def test_a_row_and_a_summary_say_what_does_not():
  row = render.row(REFUSED)
  assert "20.00 / 15.00: does not fit" in row
  assert set(row[row.index("MB sent/chip") :] if "-" not in row else "-") == {
    "-"
  }
  said = render.summarize(REFUSED)
  assert "DOES NOT FIT: needs 20.00 of 15.00 GiB a chip, 5.00 too many" in said
  assert "steps" not in said


def test_a_row_and_a_summary_say_whether_validation_fits():
  of = lambda it: dict(zip(render.COLUMNS, render.row(it), strict=True))
  assert of(made())["validating"] == "3.00"
  assert of(REFUSED)["validating"] == "-"
  said = render.summarize(made())
  assert "validation     fits: 3.00 of 15.75 GiB a chip at its peak" in said
  assert "train.eval_every=0 leaves it out" in said
  assert "leaves it out" not in render.summarize(made(validates=True))
  large = made(validation=plan.Memory(0, 20 * 2**30, 15 * 2**30))
  assert of(large)["validating"] == "20.00: does not fit"
  assert of(large)["GiB/chip of"] == "2.00 / 15.75"
  assert "validation     DOES NOT FIT: needs 20.00 of" in render.summarize(
    large
  )
  assert "validation" not in render.summarize(REFUSED)


def test_a_plan_of_several_slices_says_so():
  assert render.place(made()) == "v5e:2x4"
  assert render.place(made(slices=2)) == "2 x v5e:2x4"
