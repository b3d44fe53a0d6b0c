"""Memories come back by row, bit for bit in the stored precision."""

import errno
import os

import jax.numpy as jnp
import numpy as np
import pytest

from fs_jax import types
from fs_jax.gallery import memories as memory_store
from fs_jax.machine import errors, files

SLOW = {"levels": 2, "precision": "float32", "digest": "abc"}
SHAPES = ((4, 8), (6, 8))  # tokens and width of each level
ROW = sum(n * d for n, d in SHAPES) * 4  # bytes


def memories(size, *, masked=(), seed=0):
  """Memory of `size` rows; rows in `masked` keep two tokens of each level."""
  random = np.random.default_rng(seed)
  levels = []
  for tokens, width in SHAPES:
    latent = random.normal(size=(size, tokens, width)).astype(np.float32)
    mask = np.ones((size, tokens), bool)
    mask[list(masked), 2:] = False
    levels.append(types.Level(latent, mask))
  return types.Memory(tuple(levels))


def cut(memory, rows):
  return types.Memory(
    tuple(types.Level(x[rows], m[rows]) for x, m in memory[0])
  )


def names(size):
  return [f"v{i}" for i in range(size)]


def write(folder, memory, *, batch=3, precision="float32", shard_rows=4):
  size = len(memory.levels[0].latent)
  with memory_store.Writer(
    folder,
    {"slow": SLOW | {"precision": precision}},
    shard_bytes=shard_rows * ROW,
  ) as writer:
    for start in range(0, size, batch):
      rows = slice(start, start + batch)
      writer.append(cut(memory, rows), names(size)[rows])


def same(a, b):
  for (latent, mask), (latent_b, mask_b) in zip(
    a.levels, b.levels, strict=True
  ):
    np.testing.assert_array_equal(latent, latent_b)
    np.testing.assert_array_equal(mask, mask_b)


@pytest.mark.parametrize("batch", [1, 3, 11])
@pytest.mark.parametrize("shard_rows", [0, 1, 4, 100])
@pytest.mark.parametrize("masked", [(), (0,), (5, 10)])
def test_round_trip(tmp_path, batch, shard_rows, masked):
  memory = memories(11, masked=masked)
  write(tmp_path / "s", memory, batch=batch, shard_rows=shard_rows)
  read = memory_store.Memories(tmp_path / "s", expected={"slow": SLOW})
  assert len(read) == 11
  assert read.ids == tuple(names(11))
  assert read.bytes_per_item == ROW
  assert read.contract["items"]["count"] == 11
  same(read.read(np.arange(11)), memory)
  rows = np.array([[10, 0, 3], [3, 10, 9]])
  same(read.read(rows), cut(memory, rows))
  assert list((tmp_path / "s").glob("mask*")) != [] or not masked


def test_records_are_plain_little_endian(tmp_path):
  memory = memories(3)
  write(tmp_path / "s", memory)
  raw = np.fromfile(tmp_path / "s/level1-00000.bin", "<f4")
  np.testing.assert_array_equal(raw, memory.levels[1].latent.reshape(-1))


def test_missing_rows_are_zero_and_masked(tmp_path):
  write(tmp_path / "s", memories(5))
  read = memory_store.Memories(tmp_path / "s")
  got = read.read(np.array([[4, -1], [-1, -1]], np.int32))
  for (tokens, width), (latent, mask) in zip(SHAPES, got.levels, strict=True):
    assert latent.shape == (2, 2, tokens, width)
    assert mask.shape == (2, 2, tokens)
    assert mask[0, 0].all() and not mask[0, 1].any() and not mask[1].any()
    assert not latent[1].any()
  assert read.read(np.zeros((0,), int)).levels[0].latent.shape == (0, 4, 8)
  for rows in ([5], [-2]):
    with pytest.raises(ValueError, match=r"rows: must be -1 or in 0\.\.4"):
      read.read(np.array(rows))
  with pytest.raises(ValueError, match="must be integers; got float64"):
    read.read(np.array([0.0]))


def test_a_store_may_hold_more_than_the_index(tmp_path):
  memory = memories(6, masked=(2,))
  write(tmp_path / "s", memory, shard_rows=2)
  read = memory_store.Memories(tmp_path / "s", ids=["v5", "v2", "v3"])
  assert (len(read), read.ids) == (3, ("v5", "v2", "v3"))
  same(read.read(np.array([0, 1, 2])), cut(memory, [5, 2, 3]))
  got = read.read(np.array([[1, -1]]))
  assert got.levels[0].mask[0].sum(axis=1).tolist() == [2, 0]
  with pytest.raises(ValueError, match=r"rows: must be -1 or in 0\.\.2"):
    read.read(np.array([3]))
  with pytest.raises(ValueError, match=r"1 of 2 missing, first 'd'. do this"):
    memory_store.Memories(tmp_path / "s", ids=["v1", "d"], mend="do this")


def test_arrays_of_jax_are_taken(tmp_path):
  memory = memories(2)
  on_device = types.Memory(
    tuple(types.Level(jnp.asarray(x), jnp.asarray(m)) for x, m in memory.levels)
  )
  write(tmp_path / "s", on_device)
  same(memory_store.Memories(tmp_path / "s").read(np.arange(2)), memory)


def test_what_does_not_fit_is_refused_and_nothing_stays(tmp_path):
  memory = memories(2)
  cases = [
    (memory, ["a"], "for 1 ids; got"),
    (types.Memory(memory.levels[:1]), ["a", "b"], "shapes of the first"),
    (memory, ["v0", "c"], "different from that of row 0"),
  ]
  for late, ids, says in cases:
    with (
      pytest.raises(ValueError, match=says),
      memory_store.Writer(tmp_path / "s", {"slow": SLOW}) as writer,
    ):
      writer.append(memory, names(2))
      writer.append(late, ids)
  with pytest.raises(ValueError, match="at least one row"):
    write(tmp_path / "s", memories(0))
  with pytest.raises(ValueError, match="one of float32; got 'int8'"):
    write(tmp_path / "s", memory, precision="int8")
  with pytest.raises(ValueError, match=r"slow\.precision.*got None"):
    memory_store.Writer(tmp_path / "s", {})
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_stay_finite(tmp_path, value):
  memory = memories(2)
  memory.levels[1].latent[1, 0, 0] = value
  with pytest.raises(ValueError, match=r"finite as float32.*level 1 of 'v1'"):
    write(tmp_path / "s", memory)


def test_full_disk_keeps_the_old_store(tmp_path, monkeypatch):
  old = memories(5)
  write(tmp_path / "s", old)
  real, count = files.write_to, iter(range(100))

  def write_to(file, data):
    if next(count) == 5:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(file, data)

  monkeypatch.setattr(files, "write_to", write_to)
  with pytest.raises(errors.DiskFull, match=r"/s: needs space"):
    write(tmp_path / "s", memories(9, seed=1))
  assert [p.name for p in tmp_path.iterdir()] == ["s"]
  same(memory_store.Memories(tmp_path / "s").read(np.arange(5)), old)


def test_damaged_or_foreign_stores_are_refused(tmp_path):
  write(tmp_path / "s", memories(5))
  with pytest.raises(ValueError, match=r"slow\.digest.*do this"):
    other = {"slow": SLOW | {"digest": "xyz"}}
    memory_store.Memories(tmp_path / "s", expected=other, mend="do this")
  with open(tmp_path / "s/level0-00001.bin", "r+b") as file:
    file.truncate(100)
  with pytest.raises(ValueError, match=r"'level0-00001\.bin' must have 128"):
    memory_store.Memories(tmp_path / "s")
