import io
import json
import types as stdlib_types

import numpy as np
import pytest
from PIL import Image

from fs_jax import config
from fs_jax.data import sources, transforms


def encoded(array, fmt="PNG", **kw):
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, fmt, **kw)
  return buffer.getvalue()


def gradient(height, width):
  y, x = np.mgrid[:height, :width]
  full = [y * 255 / height, x * 255 / width, np.full_like(y, 90)]
  return np.stack(full, -1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
  """Three pictures and a video; `rewrite` changes the lines of train."""
  (tmp_path / "images").mkdir()
  for k, (h, w) in enumerate([(12, 20), (20, 12), (16, 16)]):
    (tmp_path / "images" / f"{k}.png").write_bytes(encoded(gradient(h, w)))
  lines = [
    {"image": "0.png", "captions": ["zero", "nought"]},
    {"image": "1.png", "captions": ["one"], "group": 7},
    {"image": "2.png", "captions": ["two"]},
  ]

  def rewrite(lines, split="train"):
    text = "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines)
    (tmp_path / f"{split}.jsonl").write_text(text + "\n")

  rewrite(lines)
  return stdlib_types.SimpleNamespace(
    path=tmp_path, lines=lines, rewrite=rewrite
  )


def data(folder, **fields):
  fields = {"image_size": 8, "dataset": "folder"} | fields
  return config.Data(dir=str(folder.path), **fields)


def test_folder(folder):
  source = sources.open_split(data(folder), "train")
  assert len(source) == 3 and source.ids == ("0.png", "1.png", "2.png")
  assert source.captions(0) == ("zero", "nought")
  assert [source.group(i) for i in range(3)] == [-1, 7, -1]
  example = source[-1]
  assert example.id == "2.png" and example.captions == ("two",)
  assert example.frames.shape == (1, 8, 8, 3)
  assert example.frames.dtype == np.uint8
  assert [e.id for e in source] == list(source.ids)
  with pytest.raises(IndexError):
    source[3]
  with pytest.raises(ValueError, match="must record them"):
    source.objects(0)


def test_captions_are_read_without_decoding(folder):
  (folder.path / "images" / "1.png").write_bytes(b"no picture")
  source = sources.open_split(data(folder), "train")
  assert source.captions(1) == ("one",)
  with pytest.raises(
    ValueError, match=r"train\.jsonl:2: .*1\.png: must be a whole picture"
  ):
    source[1]
  with pytest.raises(ValueError, match=r"train\.jsonl:2: .*1\.png"):
    sources.open_split(data(folder, cache="ram"), "train")


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_the_cache_changes_nothing(folder, frames, resize):
  reports = []
  cfg = data(folder, frames=frames, resize=resize)
  plain = sources.open_split(cfg, "train")
  cached = sources.open_split(
    data(folder, frames=frames, resize=resize, cache="ram"),
    "train",
    progress=lambda done, total: reports.append((done, total)),
  )
  rows = np.array([2, 0, 0, 1])
  assert plain.visuals(rows).shape == (4, frames, 8, 8, 3)
  np.testing.assert_array_equal(plain.visuals(rows), cached.visuals(rows))
  assert reports == [(1, 3), (2, 3), (3, 3)]
  assert plain.visuals([]).shape == cached.visuals([]).shape


def test_frames_for_crops_are_kept_larger(folder):
  cfg = data(folder, augment="crop", cache="ram")
  assert sources.open_split(cfg, "train", train=True)[0].frames.shape[1] == 12
  assert sources.open_split(cfg, "train")[0].frames.shape[1] == 8


def test_an_animated_picture_is_a_video(folder):
  shades = [Image.new("RGB", (8, 8), (40 * k,) * 3) for k in range(6)]
  shades[0].save(
    folder.path / "clip.png", save_all=True, append_images=shades[1:]
  )
  folder.rewrite([{"video": "clip.png", "captions": ["brighter"]}])
  source = sources.open_split(data(folder, frames=3), "train")
  assert source[0].frames[:, 0, 0, 0].tolist() == [40, 120, 200]


@pytest.mark.parametrize(
  "line, rule",
  [
    ("{broken", r"train\.jsonl:4: must be a line of JSON"),
    ("[1]", 'must name one "image" or one "video"'),
    ({"captions": ["x"]}, r"train\.jsonl:4: must name one"),
    ({"image": "0.png", "video": "0.png"}, "must name one"),
    ({"image": "2.png"}, r"train\.jsonl:4: must have captions"),
    ({"image": "2.png", "captions": []}, "must have captions"),
    ({"image": "2.png", "captions": "two"}, "must be a list of strings"),
    ({"image": "2.png", "captions": [" "]}, "none of them empty"),
    ({"image": "no.png", "captions": ["x"]}, r"train\.jsonl:4: its image must"),
    ({"image": "2.png", "captions": ["x"], "group": "a"}, "group must be an"),
    ({"image": "2.png", "captions": ["x"]}, r"unique.*got '2\.png' 2 times"),
  ],
)
def test_a_wrong_line_is_named(folder, line, rule):
  folder.rewrite([*folder.lines, line])
  with pytest.raises(ValueError, match=rule):
    sources.open_split(data(folder), "train")


def test_a_missing_root_or_split_is_named(folder):
  with pytest.raises(ValueError, match=r"it has \['train'\]"):
    sources.open_split(data(folder), "dev")
  with pytest.raises(ValueError, match=r"data\.dir: must be a folder"):
    sources.open_split(config.Data(dataset="folder", dir="/nowhere"), "train")
  folder.rewrite([])
  with pytest.raises(ValueError, match="must hold examples; got none"):
    sources.open_split(data(folder), "train")


def test_a_gallery_needs_no_captions_but_all_or_none(folder):
  bare = [{"image": "0.png"}, {"image": "1.png"}]
  folder.rewrite(bare, "gallery")
  source = sources.open_split(data(folder), "gallery")
  assert source.captions(0) == ()
  folder.rewrite(bare)
  with pytest.raises(ValueError, match=r"train\.jsonl:1: must have captions"):
    sources.open_split(data(folder), "train")
  folder.rewrite([*bare, folder.lines[2]], "gallery")
  with pytest.raises(ValueError, match=r"gallery\.jsonl:1: must have captions"):
    sources.open_split(data(folder), "gallery")


def test_files_and_their_own_proportions_are_known(folder):
  """For people: the models see squares."""
  source = sources.open_split(data(folder), "train")
  assert source.paths == tuple(f"images/{k}.png" for k in range(3))
  assert source.original(0).shape == (1, 12, 20, 3)
  some = sources.take(source, np.array([2, 1]))
  assert some.paths == (source.paths[2], source.paths[1])
  assert some.original(1).shape == (1, 20, 12, 3)
  both = sources.join(some, sources.take(source, np.array([0])))
  assert both.paths == (*some.paths, source.paths[0])


def test_join(folder):
  folder.rewrite([{"image": "1.png"}], "one")
  folder.rewrite([{"image": "0.png"}, {"image": "2.png"}], "two")
  full = sources.open_split(data(folder), "train")
  one, two = (sources.open_split(data(folder), s) for s in ("one", "two"))
  both = sources.join(one, two)
  assert both.ids == ("1.png", "0.png", "2.png")
  for rows in ([2, 0, 1, 0], [0], [2, 1], []):
    there = [(1, 0, 2)[r] for r in rows]
    np.testing.assert_array_equal(both.visuals(rows), full.visuals(there))
  with pytest.raises(ValueError, match="must be unique"):
    sources.join(one, full)


def test_take(folder):
  full = sources.open_split(data(folder), "train")
  some = sources.take(full, np.array([2, 0]))
  assert some.ids == (full.ids[2], full.ids[0]) and len(some) == 2
  assert some.captions(0) == full.captions(2)
  assert list(some.groups) == [full.groups[2], full.groups[0]]
  for rows in ([1, 0, 1], [0], np.array([1])):
    there = [(2, 0)[r] for r in rows]
    np.testing.assert_array_equal(some.visuals(rows), full.visuals(there))


def test_scenes(tmp_path):
  sizes = (
    ("train", 12),
    ("uncaptioned", 5),
    ("validation_groups", 1),
    ("test_groups", 0),
  )
  cfg = config.Data(dir=str(tmp_path), sizes=sizes)
  source = sources.open_split(cfg, "train")
  assert len(source) == 12 and len(source.captions(3)) == 5
  assert isinstance(source.captions(3)[0], str)
  assert source[3].frames.shape == (1, 64, 64, 3)
  assert source.attribution and len(source.objects(3)["kind"]) >= 2
  cached = sources.open_split(
    config.Data(dir=str(tmp_path), sizes=sizes, cache="ram"), "train"
  )
  np.testing.assert_array_equal(source.visuals([3, 1]), cached.visuals([3, 1]))
  plain = sources.open_split(cfg, "uncaptioned")
  assert len(plain) == 5 and plain.captions(0) == ()
  assert len(sources.join(source, plain)) == 17
  with pytest.raises(ValueError, match=r"must be one of .*'train'"):
    sources.open_split(cfg, "trian")


def test_transparency_is_laid_on_white():
  rgba = np.zeros((4, 4, 4), np.uint8)
  rgba[0, 0] = 10, 20, 30, 255
  pixels = transforms.decode(encoded(rgba), "x")
  assert pixels[0, 0].tolist() == [10, 20, 30]
  assert (pixels[1:] == 255).all()
  grey = Image.fromarray(np.full((3, 3), 7, np.uint8))
  buffer = io.BytesIO()
  grey.save(buffer, "PNG", transparency=7)
  assert (transforms.decode(buffer.getvalue(), "x") == 255).all()


def test_modes_become_rgb():
  grey = np.full((3, 5), 7, np.uint8)
  assert (transforms.decode(encoded(grey), "x") == 7).all()
  deep = np.full((3, 5), 7 << 8, np.uint16)
  pixels = transforms.decode(encoded(deep), "x")
  assert pixels.shape == (3, 5, 3) and (pixels == 7).all()
  buffer = io.BytesIO()
  Image.new("CMYK", (5, 3)).save(buffer, "JPEG")
  assert transforms.decode(buffer.getvalue(), "x").shape == (3, 5, 3)


def test_exif_orientation_is_applied():
  exif = Image.Exif()
  exif[0x0112] = 6  # turn a quarter clockwise to see it upright
  pixels = gradient(16, 24)
  upright = transforms.decode(encoded(pixels, exif=exif), "x")
  np.testing.assert_array_equal(upright, np.rot90(pixels, -1))


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF"])
def test_corrupt_pictures_name_their_source(fmt):
  noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
  good = encoded(noise, fmt)
  for bad in (b"", b"text", good[: len(good) // 2], good[:20]):
    with pytest.raises(ValueError, match=r"cat\.png: must be a whole picture"):
      transforms.decode(bad, "cat.png")


def test_resize():
  wide = gradient(32, 64)
  squashed = transforms.resize(wide, 16, "squash")
  assert squashed.shape == (16, 16, 3)
  assert squashed[8, 0, 1] < 20 and squashed[8, -1, 1] > 235
  cropped = transforms.resize(wide, 16, "crop")
  expected = transforms.resize(wide[:, 16:48], 16, "squash")
  np.testing.assert_array_equal(cropped, expected)
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::2] = 255  # aliased, this would be all black or all white
  grey = transforms.resize(stripes, 16, "squash")
  assert np.abs(grey.astype(int) - 127).max() < 12
  same = gradient(16, 16)
  np.testing.assert_array_equal(transforms.resize(same, 16, "crop"), same)


def test_random_crop_is_a_part_and_never_mirrored():
  frames = np.stack([gradient(40, 60)] * 2)
  generator = np.random.default_rng(0)
  starts = set()
  for _ in range(50):
    crop = transforms.random_crop(frames, 16, generator)
    assert crop.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(crop[0], crop[1])
    across = crop[0, 8, :, 1].astype(int)
    assert (np.diff(across) >= 0).all()  # left stays left
    assert across[-1] - across[0] > 0.5 * 200
    starts.add((crop[0, 0, 0, 0], crop[0, 0, 0, 1]))
  assert len(starts) > 30
  again = transforms.random_crop(frames, 16, np.random.default_rng(3))
  once = transforms.random_crop(frames, 16, np.random.default_rng(3))
  np.testing.assert_array_equal(again, once)
