"""Pictures that change under their names are other pictures."""

import json
import os
import pathlib
import shutil

import pytest
from PIL import Image

from fs_jax import config
from fs_jax.data import contents, sources
from fs_jax.machine import files

NAMES = ("a.png", "b.png")


@pytest.fixture(autouse=True)
def settled(monkeypatch, tmp_path):
  """Files of this very moment count as old ones; nothing is remembered."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(contents, "_SETTLED", -(10**15))


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / "pictures"
  (root / "images").mkdir(parents=True)
  for shade, name in enumerate(NAMES):
    Image.new("RGB", (8, 8), (90 * shade,) * 3).save(root / "images" / name)
  write_captions(root, "a red square", "a blue one")
  return root


def write_captions(folder: pathlib.Path, *captions: str) -> None:
  lines = [
    json.dumps({"image": name, "captions": [caption]})
    for name, caption in zip(NAMES, captions, strict=True)
  ]
  (folder / "test.jsonl").write_text("\n".join(lines))


def open_folder(folder: pathlib.Path) -> sources.Source:
  data = config.Data(dataset="folder", dir=str(folder), image_size=8)
  return sources.open_split(data, "test")


def digest(folder: pathlib.Path) -> str:
  return open_folder(folder).contents()


def test_files_that_did_not_change_are_read_once(folder, monkeypatch):
  before = digest(folder)
  monkeypatch.setattr(files, "sha256", None)  # nobody reads
  assert digest(folder) == before


def test_where_files_lie_is_not_what_they_hold(folder, tmp_path):
  before = digest(folder)
  assert digest(shutil.move(folder, tmp_path / "elsewhere")) == before


def test_another_picture_of_the_same_name_size_and_time(folder):
  before = digest(folder)
  path = folder / "images" / "a.png"
  times, held = path.stat(), path.read_bytes()
  path.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
  os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
  assert digest(folder) != before
  path.write_bytes(held)
  assert digest(folder) == before


def test_pictures_that_changed_places(folder):
  before = digest(folder)
  a, b = (folder / "images" / name for name in NAMES)
  a.rename(folder / "c")
  b.rename(a)
  (folder / "c").rename(b)
  assert digest(folder) != before


def test_a_file_of_this_moment_is_not_remembered(folder, monkeypatch, tmp_path):
  """It may change again before the clock of its disk ticks."""
  monkeypatch.setattr(contents, "_SETTLED", 3600 * 10**9)
  assert digest(folder) == digest(folder)
  assert not (tmp_path / "cache").exists()


def test_nothing_to_remember_with_is_no_error(folder, tmp_path, capsys):
  (tmp_path / "cache").write_text("not a folder")
  assert digest(folder) == digest(folder)
  assert "is not cached" in capsys.readouterr().err
