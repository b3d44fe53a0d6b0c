"""What a person is shown of a gallery, row by row."""

import threading

import numpy as np
import pytest

from fs_jax.data import sources
from fs_jax.gallery import encode, items

N = 2500  # more than two blocks of writing


def source_of(count=N, **fields):
  values = {
    "ids": tuple(f"v{i}" for i in range(count)),
    "all_captions": tuple((f"a cat {i}", "猫") for i in range(count)),
    "groups": np.full(count, -1, np.int32),
    "visuals": lambda rows: np.zeros((len(rows), 1, 2, 2, 3), np.uint8),
    "attribution": "by nobody",
    "paths": tuple(f"pictures/{i}.png" for i in range(count)),
  }
  return sources.Source(**values | fields)


def test_rows_are_those_of_the_source(tmp_path):
  source = source_of()
  encode.write_items(source, tmp_path / "items")
  shown = items.Items(tmp_path / "items", root="/data")
  assert len(shown) == N and shown.attribution == "by nobody"
  for row in (0, 999, 1000, N - 1):
    item = shown[row]
    assert item == (
      f"v{row}",
      f"/data/pictures/{row}.png",
      (f"a cat {row}", "猫"),
    )
    assert item.caption == f"a cat {row}"
    assert shown.thumbnail(row) is None
  assert [item.id for item in shown] == list(source.ids)
  for row in (-1, N):
    with pytest.raises(IndexError, match=f"0..{N - 1}; got {row}"):
      shown[row]


def test_a_gallery_without_captions_or_files_has_items(tmp_path):
  source = source_of(3, all_captions=((),) * 3, paths=())
  encode.write_items(source, tmp_path / "items")
  assert items.Items(tmp_path / "items")[1] == ("v1", "", ())
  assert items.Items(tmp_path / "items")[1].caption == ""


def test_thumbnails_are_kept_where_they_are_wanted(tmp_path):
  items.write(
    tmp_path / "items",
    source := source_of(3),
    items.make_contract(source),
    thumbnail=lambda row: bytes([row]),
  )
  shown = items.Items(tmp_path / "items")
  assert [shown.thumbnail(i) for i in range(3)] == [b"\0", b"\1", b"\2"]
  assert shown[2].path == "pictures/2.png"  # wherever that is


def test_several_threads_may_read(tmp_path):
  encode.write_items(source_of(200), tmp_path / "items")
  shown, seen = items.Items(tmp_path / "items"), []

  def read():
    seen.append([item.id for item in shown])

  threads = [threading.Thread(target=read) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert seen == [[f"v{i}" for i in range(200)]] * 8


def test_captions_that_changed_make_other_items(tmp_path):
  encode.write_items(source_of(3), tmp_path / "items")
  before = (tmp_path / "items" / "manifest.json").stat().st_mtime_ns
  encode.write_items(source_of(3), tmp_path / "items")
  assert (tmp_path / "items" / "manifest.json").stat().st_mtime_ns == before
  other = source_of(3, all_captions=(("a dog",),) * 3)
  expected = items.make_contract(other)
  with pytest.raises(ValueError, match=r"^captions\.texts: "):
    items.Items(tmp_path / "items", expected)
  encode.write_items(other, tmp_path / "items")
  assert items.Items(tmp_path / "items", expected)[0].caption == "a dog"


def test_a_damaged_file_is_refused_before_sqlite_sees_it(tmp_path):
  encode.write_items(source_of(3), tmp_path / "items")
  path = tmp_path / "items" / "items.sqlite"
  held = path.read_bytes()
  path.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
  with pytest.raises(ValueError, match=r"items\.sqlite.*SHA-256"):
    items.Items(tmp_path / "items")
