"""Whole or absent: writes, folders and manifests, on disks that fill up."""

import errno
import json
import os
import pathlib

import numpy as np
import pytest
from etils import epath

from fs_jax.machine import errors, files
from fs_jax.machine import manifest as manifests

FIELDS = {"kind": "corpus", "contract": {"fast": {"digest": "ab"}}}


def make(folder, *, text="one"):
  with manifests.folder(folder, "corpus") as temporary:
    files.write_text(temporary / "a.txt", text)
    (temporary / "deep").mkdir()
    files.write_array(temporary / "deep/b.npy", np.arange(6.0).reshape(2, 3))
    return manifests.write_manifest(temporary, FIELDS | {"count": 2})


def fill_the_disk(monkeypatch, *, after=0):
  """The write number `after` writes half of it and finds the disk full."""
  real, count = files.write_to, iter(range(1_000_000))

  def write_to(file, data):
    if next(count) < after:
      return real(file, data)
    raw = data.tobytes() if isinstance(data, np.ndarray) else data
    file.write(raw[: len(raw) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(files, "write_to", write_to)


def test_writes_replace(tmp_path):
  path = tmp_path / "new/x.json"
  files.write_json(path, {"a": 1})
  files.write_json(path, {"a": 2})
  assert json.loads(path.read_text()) == {"a": 2}
  assert [p.name for p in path.parent.iterdir()] == ["x.json"]
  with pytest.raises(ValueError, match="JSON"):
    files.write_json(path, float("nan"))


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "x.txt"
  files.write_text(path, "old")
  fill_the_disk(monkeypatch)
  with pytest.raises(errors.DiskFull, match=r"x\.txt: needs space.*unchanged"):
    files.write_text(path, "new and longer")
  assert path.read_text() == "old"
  assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("after", range(4))
def test_full_disk_keeps_the_old_folder(tmp_path, monkeypatch, after):
  make(tmp_path / "out")
  fill_the_disk(monkeypatch, after=after)
  with pytest.raises(errors.DiskFull, match=r"/out: needs space"):
    make(tmp_path / "out", text="two")
  assert [p.name for p in tmp_path.iterdir()] == ["out"]
  assert (tmp_path / "out/a.txt").read_text() == "one"
  assert manifests.read_manifest(tmp_path / "out", "corpus")["count"] == 2


def test_other_errors_pass_and_leave_nothing(tmp_path):
  with (
    pytest.raises(KeyboardInterrupt),
    manifests.folder(tmp_path / "out", "corpus") as t,
  ):
    files.write_text(t / "a", "a")
    raise KeyboardInterrupt
  assert list(tmp_path.iterdir()) == []


def test_folder_replaces_whole(tmp_path):
  make(tmp_path / "out")
  with manifests.folder(tmp_path / "out", "corpus") as temporary:
    assert temporary.parent == tmp_path
    assert (tmp_path / "out/deep/b.npy").exists()  # until the very end
    files.write_text(temporary / "c.txt", "two")
    manifests.write_manifest(temporary, FIELDS)
  names = sorted(p.name for p in (tmp_path / "out").iterdir())
  assert names == ["c.txt", "manifest.json"]
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folder_does_not_replace_what_is_not_ours(tmp_path):
  (tmp_path / "letters.txt").write_text("dear")
  with pytest.raises(ValueError, match="choose another folder"):
    make(tmp_path)
  assert (tmp_path / "letters.txt").read_text() == "dear"


def test_folder_does_not_replace_another_kind(tmp_path):
  make(tmp_path / "out")
  before = (tmp_path / "out/manifest.json").read_text()
  with (
    pytest.raises(
      ValueError, match=r"another index is replaced; got .*'corpus'"
    ),
    manifests.folder(tmp_path / "out", "index"),
  ):
    pass
  assert (tmp_path / "out/manifest.json").read_text() == before


@pytest.mark.parametrize("contract", [None, {}])
def test_nothing_is_kept_without_what_it_was_made_from(tmp_path, contract):
  with pytest.raises(ValueError, match="got no contract"):
    manifests.write_record(tmp_path / "x.json", "step", contract, {"a": 1})
  with (
    pytest.raises(ValueError, match="got no contract"),
    manifests.folder(tmp_path / "out", "corpus") as temporary,
  ):
    manifests.write_manifest(
      temporary, {"kind": "corpus", "contract": contract}
    )
  assert list(tmp_path.iterdir()) == []


def test_a_record_is_read_as_it_was_written(tmp_path):
  path, made_from = tmp_path / "x.json", {"fast": {"digest": "ab"}}
  manifests.write_record(path, "step", made_from, {"seconds": 1.5})
  values = manifests.read_record(path, "step", mend="do it again")
  assert (values["seconds"], values["contract"]) == (1.5, made_from)
  with pytest.raises(
    ValueError, match=r"kind 'weights'; got 1 and 'step'\. do"
  ):
    manifests.read_record(path, "weights", mend="do it again")
  old = {k: v for k, v in values.items() if k != "schema"}
  for text in (
    json.dumps(old),
    "{",
    "[]",
    json.dumps(values | {"contract": 1}),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=r"must be .*do it again"):
      manifests.read_record(path, "step", mend="do it again")
  with pytest.raises(FileNotFoundError, match="do it again"):
    manifests.read_record(tmp_path / "y.json", "step", mend="do it again")


def test_relative_paths(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  make("out")
  make(pathlib.Path("out"))
  assert manifests.read_manifest("out", "corpus")["count"] == 2


def test_write_array_is_npy(tmp_path):
  for array in (np.eye(3, 2), np.eye(3, 2).T, np.zeros((0, 4), np.int8)):
    files.write_array(tmp_path / "x.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), array)


def test_manifest_lists_everything(tmp_path):
  manifest = make(tmp_path / "out")
  assert manifests.read_manifest(tmp_path / "out", "corpus") == manifest
  assert manifest["schema"] == 1
  assert set(manifest["files"]) == {"a.txt", "deep/b.npy"}
  entry = manifest["files"]["a.txt"]
  assert entry["bytes"] == 3
  assert entry["sha256"] == files.sha256(tmp_path / "out/a.txt")


def damage(how, folder):
  if how == "missing":
    (folder / "deep/b.npy").unlink()
  elif how == "unlisted":
    (folder / "deep/c.npy").write_bytes(b"x")
  elif how == "truncated":
    with open(folder / "deep/b.npy", "r+b") as file:
      file.truncate(100)
  elif how == "changed":
    (folder / "a.txt").write_text("own")
  else:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"schema": 2} if how == "schema" else {"files": [1]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
  "how, message",
  [
    ("missing", r"'deep/b\.npy' is listed; got no such file"),
    ("unlisted", r"got 'deep/c\.npy'"),
    ("truncated", r"'deep/b\.npy' must have 176 bytes; got 100"),
    ("changed", r"'a\.txt' must have SHA-256 .*it was changed"),
    ("schema", r"schema must be 1; got 2"),
    ("files", r"must be JSON that this program wrote"),
  ],
)
def test_damage_is_named(tmp_path, how, message):
  make(tmp_path / "out")
  damage(how, tmp_path / "out")
  with pytest.raises(ValueError, match=message):
    manifests.read_manifest(tmp_path / "out", "corpus")
  if how == "changed":  # of equal length: only its hash tells
    manifests.read_manifest(tmp_path / "out", "corpus", hashes=False)


def test_no_manifest_no_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"launch\.export_index"):
    manifests.read_manifest(tmp_path / "nowhere", "index")
  make(tmp_path / "out")
  with pytest.raises(ValueError, match="kind must be 'index'; got 'corpus'"):
    manifests.read_manifest(tmp_path / "out", "index")
  (tmp_path / "out/manifest.json").write_text("{")
  with pytest.raises(ValueError, match="must be JSON"):
    manifests.read_manifest(tmp_path / "out", "corpus")


def test_hidden_files_do_not_count(tmp_path):
  make(tmp_path / "out")
  (tmp_path / "out/.DS_Store").write_bytes(b"x")
  manifests.read_manifest(tmp_path / "out", "corpus")


def test_object_stores(tmp_path, monkeypatch, bucket):
  """No renaming there: the manifest goes first of all and comes last."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  path = epath.Path("gs://bucket/out")
  make(path)
  with manifests.folder(path, "corpus") as temporary:
    files.write_text(temporary / "c.txt", "two")
    manifests.write_manifest(temporary, FIELDS)
  assert set(manifests.read_manifest(path, "corpus")["files"]) == {"c.txt"}
  with manifests.folder(epath.Path("gs://bucket/arrays"), "x") as temporary:
    files.write_array(temporary / "a.npy", np.arange(3))
  read = files.read_array("gs://bucket/arrays/a.npy")
  np.testing.assert_array_equal(read, np.arange(3))
  copy = manifests.local_copy(path)
  assert (copy / "c.txt").read_text() == "two"
  assert tmp_path in pathlib.Path(copy).parents
  files.write_text(path / "c.txt", "own")
  with pytest.raises(ValueError, match="it was changed"):
    manifests.read_manifest(path, "corpus")
  assert manifests.local_copy(tmp_path) == epath.Path(tmp_path)
