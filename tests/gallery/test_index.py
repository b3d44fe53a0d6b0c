"""Both indices against argsort; nothing damaged reaches native code."""

import json
import shutil
import sys
import types as python_types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fs_jax import types
from fs_jax.gallery import corpus as corpora
from fs_jax.gallery import exact, index, scann
from fs_jax.machine import errors, files
from tests.support import compilations, inprocess

FAST = {"digest": "abc", "embed": 32}
SIZE, WIDTH = 25_000, 32

needs_scann = pytest.mark.skipif(
  scann.import_scann() is None, reason="no wheel of scann here"
)


def units(size, width, *, seed=0):
  """Unit vectors near a surface of few dimensions, as embeddings are.

  Every seed draws from the same surface: queries are of the gallery's kind.
  """
  random = np.random.default_rng(seed)
  surface = np.random.default_rng(width).normal(size=(8, width))
  hidden = random.normal(size=(size, 8)) @ surface
  vectors = np.tanh(hidden) + 0.3 * random.normal(size=(size, width))
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors.astype(np.float32)


def integers(size, *, seed):
  """Small ones: sums are exact in any order, and many scores are equal."""
  random = np.random.default_rng(seed)
  return random.integers(-2, 3, (size, 6)).astype(np.float32)


def gallery(size, width=WIDTH, *, seed=0):
  ids = tuple(f"v{i}" for i in range(size))
  return types.Corpus(units(size, width, seed=seed), ids)


def sorted_by_score(queries, vectors, k):
  """The slow, obvious reference: equal scores by row."""
  scores = queries @ vectors.T
  rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return rows, np.take_along_axis(scores, rows, axis=1)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tree") / "index"
  index.build(gallery(SIZE), folder, contract={"fast": FAST}, kind="scann")
  return folder


@pytest.fixture
def small(tmp_path):
  """Folder of a small index of either kind."""

  def build(kind, size=50, **settings):
    corpus = gallery(size)
    index.build(
      corpus,
      tmp_path / "index",
      kind=kind,
      contract={"fast": FAST},
      settings=scann.Settings(**settings),
    )
    return tmp_path / "index"

  return build


# Exact search.


@pytest.mark.parametrize("queries", [1, 2, 9, 300])
@pytest.mark.parametrize("size, k", [(1, 1), (17, 17), (1000, 10), (1003, 100)])
@pytest.mark.parametrize("score_bytes", [1, 1 << 28])
def test_exact_is_argsort(queries, size, k, score_bytes):
  vectors, asked = integers(size, seed=0), integers(queries, seed=1)
  found = exact.make_index(vectors, score_bytes=score_bytes).search(asked, k)
  rows, scores = sorted_by_score(asked, vectors, k)
  np.testing.assert_array_equal(found.rows, rows)
  np.testing.assert_array_equal(found.scores, scores)
  assert found.rows.dtype == np.int32 and found.scores.dtype == np.float32


def test_equal_vectors_come_by_row():
  vectors = np.tile(units(7, 33), (30, 1))
  found = exact.make_index(vectors, score_bytes=1).search(vectors[:7], 30)
  want = np.arange(7)[:, None] + 7 * np.arange(30)[None]
  np.testing.assert_array_equal(found.rows, want)


def test_few_programs_serve_many_shapes():
  find = exact.make_index(units(3000, 12)).search
  find(units(8, 12), 16)
  before = exact._top_k._cache_size()
  for count in range(2, 9):
    for k in range(1, 17):
      find(units(count, 12), k)
  assert exact._top_k._cache_size() == before


def test_galleries_of_about_a_size_share_programs():
  """Alone, in chunks, and with a rest behind the chunks."""
  for score_bytes in (1 << 28, 4 * 64 * 300):
    before = None
    for size in (1985, 2000, 2047, 2048):
      vectors = integers(size, seed=0)
      find = exact.make_index(vectors, score_bytes=score_bytes).search
      for count, k in ((1, 1), (60, 100), (300, 20)):
        asked = integers(count, seed=1)
        rows, _ = sorted_by_score(asked, vectors, k)
        np.testing.assert_array_equal(find(asked, k).rows, rows)
      before = before or exact._top_k._cache_size()
    assert exact._top_k._cache_size() == before


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 5000, 65_537, 100_000])
def test_padding_is_a_sixteenth_at_most(size):
  placed = exact.place(np.ones((size, 1), np.float32))
  rows = len(placed.vectors)
  assert placed.size == size <= rows <= max(256, 1.0625 * size)
  assert float(np.asarray(placed.vectors).sum()) == size


def test_padding_is_never_an_answer():
  """All real scores are negative, those of the padding would be 0."""
  vectors = units(300, 12)
  vectors *= np.sign(vectors[:, :1])
  asked = -np.eye(12, dtype=np.float32)[:1]
  for score_bytes in (1, 1 << 28):
    found = exact.make_index(vectors, score_bytes=score_bytes).search(
      asked, 400
    )
    assert sorted(found.rows[0, :300]) == list(range(300))
    assert (found.rows[0, 300:] == -1).all()
    assert np.isneginf(found.scores[0, 300:]).all()


def test_vectors_travel_once(monkeypatch):
  """Not with every 256 queries; a gallery that is placed, not again either."""
  real, given = exact._top_k, []

  def watched(vectors, *rest, **sizes):
    given.append(vectors)
    return real(vectors, *rest, **sizes)

  monkeypatch.setattr(exact, "_top_k", watched)
  vectors, asked = units(500, 12), units(700, 12, seed=1)
  exact.find_nearest(vectors, asked, 10)
  assert len(given) == 3
  assert isinstance(given[0], jax.Array)
  assert all(x is given[0] for x in given)
  placed = exact.place(vectors)
  for _ in range(2):
    exact.find_nearest(placed, asked, 10)
  assert all(x is placed.vectors for x in given[3:])


@pytest.mark.parametrize("size, score_bytes", [(3000, 1 << 28), (700, 1 << 18)])
def test_nothing_is_compiled_after_warming(size, score_bytes):
  found = exact.make_index(units(size, 12), score_bytes=score_bytes)
  found.warm(256)
  random = np.random.default_rng(0)
  dtypes = np.float32, np.float64, np.float16, jnp.bfloat16
  asked = [units(600, 12).astype(dtype) for dtype in dtypes]
  asked += [jnp.asarray(asked[0]), jnp.asarray(asked[3])]
  with compilations.none():
    for turn in range(40):
      count = random.integers(1, random.choice([3, 30, 600]))
      queries = asked[turn % len(asked)]
      if isinstance(queries, np.ndarray):
        queries = queries[:count]  # of jax, this would compile by itself
      k = int(random.integers(1, 257))
      assert found.search(queries, k).rows.shape == (len(queries), k)


def test_queries_of_jax_compile_nothing_of_their_own():
  placed = exact.place(units(300, 12))
  exact.warm(placed, 16)
  asked = jnp.asarray(units(300, 12), jnp.bfloat16)
  with compilations.none():
    exact.find_nearest(placed, asked, 5)


def test_short_rows_are_filled():
  found = exact.make_index(units(3, 4)).search(units(2, 4), 5)
  assert (found.rows[:, 3:] == -1).all()
  assert np.isneginf(found.scores[:, 3:]).all()
  assert (found.rows[:, :3] >= 0).all()


def test_queries_may_be_of_jax_and_of_lower_precision():
  vectors = units(20, 4)
  for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
    found = exact.make_index(vectors).search(jnp.asarray(vectors, dtype), 1)
    np.testing.assert_array_equal(found.rows[:, 0], np.arange(20))


# Both kinds, through their folders.


@pytest.mark.parametrize(
  "kind", ["exact", pytest.param("scann", marks=needs_scann)]
)
def test_small_indices_are_exact(small, kind):
  folder = small(kind, size=700)
  found = index.load(folder, expected={"fast": FAST})
  assert (found.kind, found.size, found.width) == (kind, 700, WIDTH)
  assert found.ids[:2] == ("v0", "v1")
  assert found.manifest["recall_at_10"] == 1.0
  queries = units(40, WIDTH, seed=1)
  vectors = gallery(700).vectors
  got = found.search(queries, 20)
  rows, scores = sorted_by_score(queries, vectors, 20)
  np.testing.assert_array_equal(got.rows, rows)
  np.testing.assert_allclose(got.scores, scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "kind", ["exact", pytest.param("scann", marks=needs_scann)]
)
def test_queries_are_checked(small, kind):
  search = index.load(small(kind)).search
  good = units(3, WIDTH)
  bad = good.copy()
  bad[1, 0] = np.nan
  for queries, says in [
    (bad, "NaN or infinity in row 1"),
    (good[:, :5], r"must be \[Q,32\]; got shape \(3, 5\)"),
    (good[0], r"must be \[Q,32\]; got shape \(32,\)"),
    (good[:0], "at least one row"),
    (good.astype(np.int32), "floating point; got int32"),
  ]:
    with pytest.raises(ValueError, match=says):
      search(queries, 3)
  for k in (0, -1, 2.0, True):
    with pytest.raises(ValueError, match="k: must be an integer >= 1"):
      search(good, k)


@pytest.mark.parametrize(
  "kind", ["exact", pytest.param("scann", marks=needs_scann)]
)
def test_corpus_and_contract_are_checked(small, kind, tmp_path):
  folder = small(kind)
  with pytest.raises(ValueError, match=r"fast\.digest.*do this"):
    other = {"fast": FAST | {"digest": "xyz"}}
    index.load(folder, expected=other, mend="do this")
  corpus = gallery(50)
  corpus.vectors[7, 3] = np.nan
  with pytest.raises(ValueError, match=r"finite.*row 7, id 'v7'"):
    index.build(corpus, folder, kind=kind, contract={})
  assert index.load(folder).size == 50  # as it was
  assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_unknown_kinds_are_refused(small, tmp_path):
  with pytest.raises(
    ValueError, match="'auto', 'exact' or 'scann'; got 'hnsw'"
  ):
    small("hnsw")
  folder = small("exact")
  manifest = json.loads((folder / "manifest.json").read_text())
  manifest["backend"] = "hnsw"
  (folder / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match="'exact' or 'scann'; got 'hnsw'"):
    index.load(folder)
  with pytest.raises(FileNotFoundError, match=r"launch\.export_index"):
    index.load(tmp_path / "nowhere")


def test_without_scann(small, monkeypatch):
  folder = None
  if scann.import_scann() is not None:
    folder = small("scann")
  monkeypatch.setattr(scann, "import_scann", lambda: None)
  if folder:
    with pytest.raises(ValueError, match="needs the package scann"):
      index.load(folder)
    vectors, queries = folder.parent / "vectors", units(3, WIDTH)
    corpora.save(vectors, gallery(50), {"fast": FAST})
    loaded = index.load(folder, vectors=vectors)
    assert loaded.kind == "exact"
    assert "not installed" in loaded.manifest["warning"]
    all_pairs = exact.make_index(gallery(50).vectors)
    np.testing.assert_array_equal(
      loaded.search(queries, 5).rows, all_pairs.search(queries, 5).rows
    )
    others = gallery(50)._replace(ids=gallery(50).ids[::-1])
    corpora.save(vectors, others, {"fast": FAST})
    with pytest.raises(ValueError, match=r"same order|items"):
      index.load(folder, vectors=vectors)
  with pytest.raises(ValueError, match="needs the package scann"):
    small("scann")
  with pytest.warns(UserWarning, match="compares all vectors"):
    folder = small("auto")
  assert index.load(folder).kind == "exact"
  assert "not installed" in index.load(folder).manifest["warning"]


# ScaNN.


@needs_scann
def test_tree_recall(tree):
  found = index.load(tree)
  used = found.manifest["settings"]
  assert used["leaves_to_search"][-1] < used["leaves"]
  assert found.manifest["recall_at_10"] >= 0.99
  assert found.manifest["recall_at_100"] >= 0.99
  vectors = gallery(SIZE).vectors
  queries = units(200, WIDTH, seed=2)  # not those that the tree was tuned on
  got = found.search(queries, 10)
  rows, _ = sorted_by_score(queries, vectors, 10)
  assert exact.measure_recall(got.rows, rows) >= 0.95
  assert (np.diff(got.scores, axis=1) <= 0).all()
  picked = np.einsum("qe,qke->qk", queries, vectors[got.rows])
  np.testing.assert_allclose(got.scores, picked, rtol=1e-4, atol=1e-5)
  one = found.search(queries[:1], 10)
  np.testing.assert_array_equal(one.rows[0], got.rows[0])


@needs_scann
def test_measured_on_given_queries(small):
  folder = small("scann", size=600, brute_below=100, leaves=20)
  first = index.load(folder).manifest
  assert first["recall_measured_on"] == "vectors of the corpus with noise"
  manifest = index.build(
    gallery(600),
    folder,
    kind="scann",
    contract={},
    settings=scann.Settings(brute_below=100, leaves=20, leaves_to_search=20),
    queries=units(700, WIDTH, seed=3),
  )
  assert manifest["recall_measured_on"] == "given queries"
  assert manifest["recall_queries"] == 512
  assert manifest["settings"]["leaves_to_search"] == 20


def clustered(size=5000, width=64):
  """Clusters so wide that the best 100 lie in many leaves, by rough codes."""
  random = np.random.default_rng(0)
  centres = random.normal(size=(size // 25, width))
  vectors = centres[random.integers(len(centres), size=size)]
  vectors = vectors + 2 * random.normal(size=(size, width))
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  ids = tuple(f"v{i}" for i in range(size))
  return types.Corpus(vectors.astype(np.float32), ids)


@needs_scann
def test_both_knobs_are_turned(tmp_path):
  """Either alone ends at its most, short of the target."""

  def built(**given):
    return index.build(
      clustered(),
      tmp_path / "index",
      {"fast": FAST},
      kind="scann",
      settings=scann.Settings(brute_below=0, recall=0.998, **given),
    )

  with pytest.warns(UserWarning, match=r"must reach its target of 0\.998"):
    leaves = built(reorder=400)
  assert leaves["recall_at_100"] < 0.998 <= leaves["recall_at_10"]
  assert leaves["settings"]["leaves_to_search"][-1] == 107  # all
  assert leaves["settings"]["reorder"] == 400
  said = f"got {leaves['recall_at_10']:.4f} at 10 and "
  assert said + f"{leaves['recall_at_100']:.4f} at 100" in leaves["warning"]
  with pytest.warns(UserWarning, match="must reach its target"):
    rows = built(leaves_to_search=30)
  assert rows["recall_at_100"] < 0.998
  assert rows["settings"]["leaves_to_search"] == 30
  assert index.load(tmp_path / "index").manifest["warning"] == rows["warning"]
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    both = built()
  assert min(both["recall_at_10"], both["recall_at_100"]) >= 0.998
  assert (both["recall_target"], both["warning"]) == (0.998, "")
  used = both["settings"]
  assert used["reorder"][0] < used["reorder"][-1]
  assert used["reorder"][-1] > 400
  found = index.load(tmp_path / "index")
  queries, _ = index._sample(clustered().vectors, None)
  for k in (5, 15, 35, 100, 256):  # between the depths, and past the last
    truth, _ = sorted_by_score(queries, clustered().vectors, k)
    assert exact.measure_recall(found.search(queries, k).rows, truth) >= 0.995


@needs_scann
def test_an_older_index_still_opens(tree, tmp_path):
  folder = tmp_path / "index"
  shutil.copytree(tree, folder)
  manifest = json.loads((folder / "manifest.json").read_text())
  del manifest["recall_target"], manifest["settings"]["depths"]
  manifest["settings"] |= {"leaves_to_search": 24, "reorder": 100}
  (folder / "manifest.json").write_text(json.dumps(manifest))
  queries = units(20, WIDTH, seed=2)
  rows, _ = sorted_by_score(queries, gallery(SIZE).vectors, 10)
  found = index.load(folder)
  assert exact.measure_recall(found.search(queries, 10).rows, rows) >= 0.95
  found.warm(100)


@needs_scann
def test_the_program_tells_both_recalls_and_takes_both_knobs(tmp_path):
  corpora.save(tmp_path / "vectors", gallery(20_000, 8), {"fast": FAST})
  knobs = "--leaves_to_search=2", "--reorder=120", "--recall=0.999"
  with pytest.warns(UserWarning, match="must reach its target"):
    done = inprocess.launch("export_index", f"--gallery={tmp_path}", *knobs)
  assert done.code == 0, done.err
  manifest = index.load(tmp_path / "index").manifest
  assert manifest["settings"]["leaves_to_search"] == 2
  assert manifest["settings"]["reorder"] == 120
  assert manifest["recall_target"] == 0.999
  assert f"warning: {manifest['warning']}" in done.out
  for k in (10, 100):
    assert f"recall@{k} {manifest[f'recall_at_{k}']:.4f}" in done.out


@needs_scann
def test_settings_are_checked(small):
  with pytest.raises(ValueError, match=r"leaves: must be in 1\.\.50"):
    small("scann", brute_below=0, leaves=51)
  with pytest.raises(ValueError, match=r"leaves_to_search: must be in 0\.\.5,"):
    small("scann", brute_below=0, leaves=5, leaves_to_search=6)
  with pytest.raises(ValueError, match="recall <= 1"):
    small("scann", brute_below=0, recall=2.0)


@needs_scann
@pytest.mark.parametrize("size", [1, 15, 16, 40])
def test_tiny_trees(small, size):
  found = index.load(small("scann", size=size, brute_below=0))
  got = found.search(units(2, WIDTH), 100)
  assert got.rows.shape == (2, 100)
  assert (got.rows[:, size:] == -1).all()
  assert all(len(set(r[r >= 0])) == (r >= 0).sum() for r in got.rows)


@needs_scann
def test_what_is_not_reached_is_no_answer(tree):
  """ScaNN itself answers row 0 with a score of NaN."""
  searcher = scann.load(files.epath.Path(tree) / "scann")
  queries = units(5, WIDTH, seed=4)
  rows, scores = scann.find_nearest(searcher, lambda k: (1, k), queries, 5000)
  missing = rows == -1
  assert missing.any()
  assert (np.isneginf(scores) == missing).all()
  assert (rows[:, :1] >= 0).all()
  for row in rows:
    reached = row[row >= 0]
    assert len(set(reached)) == len(reached)


@needs_scann
def test_the_folder_can_move(tree, tmp_path):
  shutil.copytree(tree, tmp_path / "elsewhere")
  queries = units(5, WIDTH, seed=4)
  here, there = (index.load(x) for x in (tree, tmp_path / "elsewhere"))
  for a, b in zip(
    here.search(queries, 9), there.search(queries, 9), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@needs_scann
@pytest.mark.parametrize(
  "how, says",
  [
    ("truncated", r"'scann/dataset\.npy' must have .* bytes; got 1000"),
    ("changed", r"'scann/serialized_partitioner\.pb' must have SHA-256"),
    ("missing", r"'scann/ah_codebook\.pb' is listed; got no such file"),
    ("pickle", r"got 'scann/scann_docids\.pkl'"),
    ("unfinished", r"has a manifest\.json; got none"),
  ],
)
def test_damage_never_reaches_native_code(
  tree, tmp_path, monkeypatch, how, says
):
  folder = tmp_path / "index"
  shutil.copytree(tree, folder)
  if how == "truncated":
    with open(folder / "scann/dataset.npy", "r+b") as file:
      file.truncate(1000)
  elif how == "changed":
    with open(folder / "scann/serialized_partitioner.pb", "r+b") as file:
      file.seek(100)
      file.write(b"\0\1\2\3")
  elif how == "missing":
    (folder / "scann/ah_codebook.pb").unlink()
  elif how == "pickle":
    (folder / "scann/scann_docids.pkl").write_bytes(b"cos\nsystem\n.")
  else:
    (folder / "manifest.json").unlink()
  monkeypatch.setattr(scann, "load", lambda _: pytest.fail("reached"))
  with pytest.raises((ValueError, FileNotFoundError), match=says):
    index.load(folder)


@needs_scann
def test_full_disk_keeps_the_old_index(small, tmp_path, monkeypatch):
  folder = small("scann")

  class Full:
    def serialize(self, folder, relative_path):
      (files.epath.Path(folder) / "dataset.npy").write_bytes(b"half")
      raise RuntimeError("Failed to extract ...: I/O error")  # its words

  real = scann._write
  monkeypatch.setattr(scann, "_write", lambda _, path: real(Full(), path))
  with pytest.raises(errors.DiskFull, match=r"/index: needs space"):
    small("scann", size=60)
  assert [p.name for p in tmp_path.iterdir()] == ["index"]
  assert index.load(folder).size == 50


@needs_scann
def test_tensorflow_stays_hidden_from_scann(monkeypatch):
  theirs = python_types.ModuleType("tensorflow")
  monkeypatch.setitem(sys.modules, "tensorflow", theirs)
  assert scann.import_scann.__wrapped__() is not None
  assert sys.modules["tensorflow"] is theirs
  monkeypatch.delitem(sys.modules, "tensorflow")
  assert scann.import_scann.__wrapped__() is not None
  assert "tensorflow" not in sys.modules
