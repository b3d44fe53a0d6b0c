"""The page: whole, escaped, self-contained."""

import html.parser
import re

import numpy as np
import pytest

from fs_jax.evaluate.page import examples, page, svg
from fs_jax.search import grounding

VOID = {"meta", "br", "img", "link", "hr", "input"}
CREDIT = "Drawings: <Somebody>, CC BY-SA 4.0"


class Checker(html.parser.HTMLParser):
  """Fails on a tag that is not closed in order; keeps tags and text."""

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.text = [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def parsed(path) -> Checker:
  checker = Checker()
  checker.feed(path.read_text("utf-8"))
  checker.close()
  assert checker.open == []
  return checker


def picture(seed: int = 0, size=(16, 16)) -> np.ndarray:
  draw = np.random.default_rng(seed)
  return draw.integers(0, 256, (1, *size, 3), np.uint8)


def row(name: str, recall: float, ms: float | None) -> dict:
  values = [recall, recall - 2, recall + 2]
  return {
    "name": name,
    **{key: values for key in ("R@1", "R@5", "R@10")},
    "hard_R@1": None if ms is None else values,
    "median_rank": 1,
    "ms_per_query": ms,
    "stages_ms": {} if ms is None else {"encode": ms},
  }


REPORT = {
  "gallery": 100,
  "queries": 50,
  "seed": 7,
  "device": "1 x <cpu>",
  "seconds": {"data": 1.5, "fast": 20.0},
  "rows": [row("fast", 30, 0.1), row("slow", 60, 90.0), row("rerank@5", 55, 1)],
  "chance": 12.5,
  "times_faster_than_slow": {"fast": 900.0, "slow": 1.0, "rerank@5": 90.0},
  "paired": [
    {"name": "rerank@5 - fast", "R@1": [25.0, 20.0, 30.0]},
    {"name": "rerank@5 - slow", "R@1": [-1.0, -3.0, 1.0]},
  ],
}
CURVES = {
  "fast": [
    {"step": 1, "split": "train", "loss": 3.0},
    {"step": 2, "split": "train", "loss": 2.0},
    {"step": 2, "split": "validation", "R@1": 0.25},
  ]
}


def write(path, report=REPORT, text="a <b>star</b> & more"):
  shown = tuple(examples.Answer(picture(i), i == 1, -i / 4) for i in range(5))
  case = examples.Case(text, "drawn by chance", 9, 2, picture(1), (), shown)
  hidden = case._replace(final=(), before=None)
  maps = (np.ones((1, 1)), np.eye(2) / 2)
  words = [
    grounding.Word(token, direction, log_p, maps)
    for direction, token, log_p in (
      ("forward", "<star>", -1.5),
      ("forward", "there", -0.5),
      ("forward", "</s>", -0.25),
      ("backward", "there", -3.5),
      ("backward", "<star>", -2.5),
      ("backward", "</s>", -0.25),
    )
  ]
  look = page.Look(text, picture(2), words)
  lists = ("fast<ed>", "rerank@20")
  page.write(path, report, CURVES, [case, hidden], [look], CREDIT, lists)
  return parsed(path)


def test_page_is_whole_and_says_what_was_measured(tmp_path):
  checker = write(tmp_path / "index.html")
  said = " ".join(checker.text)
  for words in ("50 text queries", "60.0", "58.0 to 62.0", "900", "chance"):
    assert words in said
  assert "is 25.0 points above" in said
  assert "No difference is shown between" in said
  assert "rank 9 → 2" in said
  assert "fast<ed>" in said
  assert "−0.75" in said  # a score
  assert "2 queries are the first of a seeded shuffle" in said
  assert "rank beyond the list → 2" in said
  assert "Device: 1 x <cpu>. Seed: 7." in said
  assert said.count(CREDIT) == 2  # below the answers, below the attention


def test_both_readings_of_a_word_stand_together(tmp_path):
  said = "".join(write(tmp_path / "index.html").text)
  assert "<star>→ −1.50← −2.50there→ −0.50← −3.50" in said
  assert "both readings and the ends: −8.5 nats" in said
  assert "</s>" not in said


def test_pictures_and_plots_have_words(tmp_path):
  checker = write(tmp_path / "index.html")
  images = [attrs for tag, attrs in checker.tags if tag == "img"]
  drawn = [attrs for tag, attrs in checker.tags if tag == "svg"]
  tables = [tag for tag, _ in checker.tags if tag in ("table", "caption")]
  # Answers, the one meant; a picture, two levels of two words.
  assert len(images) == 5 + 1 + 1 + 2 * 2
  assert all(attrs["alt"] for attrs in images)
  assert len(drawn) == 3
  assert all(attrs["aria-label"] for attrs in drawn)
  assert tables == ["table", "caption"] * 2
  bars = [
    a["style"] for tag, a in checker.tags if tag == "span" if "style" in a
  ]
  assert bars == ["width:7.5%", "width:100.0%"]


def test_page_needs_nothing_beside_it(tmp_path):
  checker = write(tmp_path / "index.html")
  tags = {tag for tag, _ in checker.tags}
  assert not tags & {"script", "link", "iframe", "object"}
  for _, attrs in checker.tags:
    assert attrs.get("src", "data:image/png").startswith("data:image/png")
    assert "href" not in attrs
  assert not re.search(r"url\(|@import", (tmp_path / "index.html").read_text())


def test_values_are_escaped(tmp_path):
  checker = write(tmp_path / "index.html", text="<script>$x</script>")
  assert "script" not in {tag for tag, _ in checker.tags}
  assert "<script>$x</script>" in "".join(checker.text)
  assert "<star>" in "".join(checker.text)


def test_extras_may_be_missing(tmp_path):
  report = {key: REPORT[key] for key in ("gallery", "queries", "seed")}
  report |= {"rows": [row("other", 5, None)], "seconds": {}, "device": "cpu"}
  path = tmp_path / "index.html"
  page.write(path, report, {}, [], [], "")
  said = " ".join(parsed(path).text)
  assert "other" in said
  assert "Answers" not in said
  assert "look-alikes" not in said


@pytest.mark.parametrize(
  ("low", "high"), [(0, 1), (3, 3), (-2.5, 71), (1e-4, 2e-4), (28, 65.2)]
)
def test_ticks_enclose_a_range(low, high):
  marks = svg.ticks(low, high)
  assert marks[0] <= low
  assert marks[-1] >= high
  assert 2 <= len(marks) <= 8
  np.testing.assert_allclose(np.diff(marks), marks[1] - marks[0])


def test_a_plot_of_one_point_is_drawn():
  one = svg.Point("a<b", 2.0, 50.0, 50.0, 50.0)
  drawn = svg.scatter([one], "t", "x", "y")
  assert "a&lt;b" in drawn
  assert "nan" not in drawn
  assert "nan" not in svg.curve([(0, 1.0)], "t", "x", "y")


def test_names_in_a_plot_are_inside_and_apart():
  """The rankers of a study, of which two take the same time."""
  points = [
    svg.Point("fast", 0.27, 31, 28, 35),
    svg.Point("fast_distilled", 0.28, 35, 32, 38),
    svg.Point("slow", 180.0, 62, 59, 65),
    svg.Point("fast_rerank@20", 3.1, 58, 55, 61),
    *(
      svg.Point(f"rerank@{k}", 0.3 + 0.14 * k, y, y - 3, y + 3)
      for k, y in ((5, 53), (10, 56), (20, 60), (50, 61))
    ),
  ]
  drawn = svg.scatter(points, "t", "x", "y")
  boxes = []
  for x, anchor, y, name in re.findall(
    r'class="name" x="([\d.]+)"(?: text-anchor="(\w+)")? y="([\d.]+)">([^<]+)',
    drawn,
  ):
    width = 7 * len(name)
    left = float(x) - width * {"": 0, "middle": 0.5, "end": 1}[anchor]
    boxes.append((left, left + width, float(y)))
  assert len(boxes) == len(points)
  for i, (left, right, y) in enumerate(boxes):
    assert left >= 40
    assert right <= 460
    assert not any(
      left < end and start < right and abs(y - other) < 12
      for start, end, other in boxes[:i]
    )
