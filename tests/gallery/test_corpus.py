"""A corpus comes back as it was saved, or is refused by name."""

import numpy as np
import pytest

from fs_jax import types
from fs_jax.gallery import corpus
from fs_jax.machine import manifest

FAST = {"image_size": 64, "digest": "abc"}


def gallery(size=10, width=4, *, seed=0):
  vectors = np.random.default_rng(seed).normal(size=(size, width))
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  ids = tuple(f"piçture {i}" for i in range(size))
  return types.Corpus(vectors.astype(np.float32), ids)


@pytest.mark.parametrize(
  "shard_bytes, shards", [(1 << 20, 1), (48, 4), (1, 10)]
)
def test_round_trip(tmp_path, shard_bytes, shards):
  given = gallery()
  manifest = corpus.save(
    tmp_path / "c", given, {"fast": FAST}, shard_bytes=shard_bytes
  )
  assert len(list((tmp_path / "c").glob("*.npy"))) == shards
  assert manifest["shape"] == [10, 4]
  loaded = corpus.load(tmp_path / "c", {"fast": FAST})
  np.testing.assert_array_equal(loaded.vectors, given.vectors)
  assert loaded.ids == given.ids
  assert corpus.read_contract(tmp_path / "c")["fast"] == FAST


def test_another_model_is_refused(tmp_path):
  corpus.save(tmp_path / "c", gallery(), {"fast": FAST})
  with pytest.raises(ValueError, match=r"fast\.digest.*launch\.encode"):
    corpus.load(tmp_path / "c", {"fast": FAST | {"digest": "xyz"}})


@pytest.mark.parametrize("bad", [np.nan, np.inf, 2.0])
@pytest.mark.parametrize("row", [0, 7, 66_000])
def test_a_bad_row_is_named(tmp_path, bad, row):
  given = gallery(66_001, 2)
  given.vectors[row, 1] = bad
  rule = "unit length" if bad == 2 else "finite"
  with pytest.raises(
    ValueError, match=rf"{rule}.*row {row}, id 'piçture {row}'"
  ):
    corpus.save(tmp_path / "c", given, {"fast": FAST})
  assert list(tmp_path.iterdir()) == []


def test_length_has_a_tolerance():
  given = gallery()
  corpus.validate(given._replace(vectors=given.vectors * np.float32(1.0009)))
  with pytest.raises(ValueError, match=r"got length 1\.0011"):
    corpus.validate(given._replace(vectors=given.vectors * np.float32(1.0011)))


@pytest.mark.parametrize(
  "vectors, says",
  [
    (np.ones((10, 1)), "float32; got float64"),
    ([[1.0]] * 10, "float32; got list"),
    (np.ones(10, np.float32), r"shape \(10,\)"),
    (np.ones((0, 4), np.float32), "at least one row"),
    (np.ones((9, 1), np.float32), "each of 9 vectors; got 10"),
  ],
)
def test_shapes_and_types(vectors, says):
  with pytest.raises(ValueError, match=says):
    corpus.validate(gallery()._replace(vectors=vectors))


@pytest.mark.parametrize(
  "name, says",
  [
    ("a\nb", "one line"),
    ("a\r", "one line"),
    ("", "not empty"),
    (3, "a string that is not empty"),
    ("\ud800", "Unicode"),
    ("piçture 2", "different from that of row 2"),
  ],
)
def test_ids(name, says):
  given = gallery()
  ids = (*given.ids[:5], name, *given.ids[6:])
  with pytest.raises(ValueError, match=rf"{says}; got .* in row 5"):
    corpus.validate(given._replace(ids=ids))


def test_the_contract_holds_the_ids(tmp_path):
  """Even where the manifest was written anew around another list."""
  fields = corpus.save(tmp_path / "c", gallery(), {"fast": FAST})
  (tmp_path / "c/ids.txt").write_text("a\nb\n")
  with pytest.raises(ValueError, match=r"'ids\.txt' must have"):
    corpus.load(tmp_path / "c")
  del fields["files"]
  manifest.write_manifest(tmp_path / "c", fields)
  with pytest.raises(ValueError, match=r"items\.count.*got 10 .* and 2 "):
    corpus.load(tmp_path / "c")


def test_shards_add_up(tmp_path):
  fields = corpus.save(
    tmp_path / "c", gallery(), {"fast": FAST}, shard_bytes=48
  )
  (tmp_path / "c/vectors-00003-of-00004.npy").unlink()
  del fields["files"]
  manifest.write_manifest(tmp_path / "c", fields)
  with pytest.raises(ValueError, match="must hold 10 rows; got 9"):
    corpus.load(tmp_path / "c")
