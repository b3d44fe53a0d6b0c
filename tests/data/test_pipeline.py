import collections
import dataclasses
import itertools

import jax
import numpy as np
import pytest

from fs_jax import config, sizes, types
from fs_jax.data import pipeline, sources, tokenizer, transforms

N, BATCH = 23, 8
NAMES = [chr(ord("a") + i) for i in range(N)]


def captions_of(i):
  return tuple(f"{NAMES[i]} w{j}" for j in range(i % 4 + 1))


def make_source(n=N, start=0, captions=captions_of, size=8):
  frames = np.zeros((n, 1, size, size, 3), np.uint8)
  frames[:] = np.arange(start, start + n)[:, None, None, None, None]
  frames[..., 0] += np.arange(size, dtype=np.uint8) * 4  # for crops to move
  return sources.Source(
    ids=tuple(f"id{i}" for i in range(start, start + n)),
    all_captions=tuple(captions(i) for i in range(n)),
    groups=np.full(n, -1, np.int32),
    visuals=lambda rows: frames[np.asarray(rows, int)],
  )


@pytest.fixture(scope="module")
def source():
  return make_source()


@pytest.fixture(scope="module")
def tok(source):
  texts = itertools.chain(*source.all_captions)
  return tokenizer.train(texts, config.Tokens(length=5))


def make_cfg(seed=0, batch=BATCH, clusters=2, **data):
  data = {"image_size": 8, "augment": "crop", "captions_per_visual": 2} | data
  tiny = sizes.VISION["tiny"]
  vision = dataclasses.replace(tiny, patch=8)
  return config.Config(
    stage="fast",
    fast=config.Fast(vision, sizes.TEXT["tiny"]),
    seed=seed,
    data=config.Data(**data),
    distill=config.Distill(clusters=clusters, cluster_size=4),
    train=config.Train(batch_size=batch),
  )


def take(iterator, n):
  return list(itertools.islice(iterator, n))


def assert_same(a, b):
  assert type(a) is type(b)
  for x, y in zip(a, b, strict=True):
    if isinstance(x, tuple):
      assert_same(x, y)
    elif x is None:
      assert y is None
    else:
      assert x.dtype == y.dtype
      np.testing.assert_array_equal(x, y)


def joined(parts):
  """Batches of contiguous rows -> the batch of all of them."""
  if isinstance(parts[0], types.DistillBatch):
    pairs, clusters, judged = zip(*parts, strict=True)
    judged = None if judged[0] is None else np.concatenate(judged)
    return types.DistillBatch(joined(pairs), joined(clusters), judged)
  return types.Batch(*(np.concatenate(p) for p in zip(*parts, strict=True)))


def make_clusters(source):
  everything = sources.join(source, make_source(9, N, lambda i: ()))
  rng = np.random.default_rng(0)
  return pipeline.Clusters(
    everything,
    rng.integers(0, len(everything), (5, 4)).astype(np.int32),
    rng.integers(0, len(source), (5, 4)).astype(np.int32),
  )


def test_shapes_and_texts(source, tok):
  cfg = make_cfg(augment="none")
  for batch in take(pipeline.train_batches(source, tok, cfg, start=0), 5):
    assert batch.visual.shape == (BATCH, 1, 8, 8, 3)
    assert batch.visual.dtype == np.uint8
    assert batch.text.shape == (2 * BATCH, 5)
    assert batch.text.dtype == batch.text_id.dtype == np.int32
    assert batch.visual_id.dtype == np.int32
    assert batch.mask.all() and batch.captions_per_visual == 2
    np.testing.assert_array_equal(batch.visual[:, 0, 0, 0, 1], batch.visual_id)
    decoded = tok.decode(batch.text)
    for r, text in enumerate(decoded):
      assert text in captions_of(batch.visual_id[r // 2])
    for a, b, i in zip(
      decoded[::2], decoded[1::2], batch.visual_id, strict=True
    ):
      assert (a != b) == (i % 4 > 0)  # without replacement where possible


@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_resumed_is_uninterrupted(source, tok, distil, threads):
  cfg = make_cfg(threads=threads)
  clusters = make_clusters(source) if distil else None
  kw = {"clusters": clusters}
  full = take(pipeline.train_batches(source, tok, make_cfg(), start=0, **kw), 9)
  for start in (0, 4, 8):
    rest = pipeline.train_batches(source, tok, cfg, start=start, **kw)
    for a, b in zip(full[start:], rest, strict=False):
      assert_same(a, b)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("distil", ["", "online", "offline"])
def test_slices_of_processes_make_the_batch(source, tok, processes, distil):
  clusters = make_clusters(source) if distil else None
  if distil == "offline":
    judged = np.arange(80, dtype=np.float32).reshape(5, 4, 4)
    clusters = clusters._replace(judged=judged)
  kw = {"start": 3, "clusters": clusters}
  whole = take(pipeline.train_batches(source, tok, make_cfg(), **kw), 4)
  each = BATCH // processes
  parts = [
    take(
      pipeline.train_batches(
        source, tok, make_cfg(), rows=(slice(p * each, (p + 1) * each),), **kw
      ),
      4,
    )
    for p in range(processes)
  ]
  for t, batch in enumerate(whole):
    assert_same(batch, joined([part[t] for part in parts]))


def test_rows_may_lie_apart(source, tok):
  """As a torus of devices deals them to its hosts."""
  kw = {"start": 1, "clusters": make_clusters(source)}
  (whole,) = take(pipeline.train_batches(source, tok, make_cfg(), **kw), 1)
  apart = (slice(0, 2), slice(4, 6))
  (got,) = take(
    pipeline.train_batches(source, tok, make_cfg(), rows=apart, **kw), 1
  )
  assert len(got.pairs.mask) == 4
  for have, want in zip(
    jax.tree.leaves(got), jax.tree.leaves(whole), strict=True
  ):
    quarters = np.split(want, BATCH // 2)
    np.testing.assert_array_equal(have, np.concatenate(quarters[::2]))


def test_an_epoch_holds_every_example_once_and_wraps(source, tok):
  batches = pipeline.train_batches(source, tok, make_cfg(), start=0)
  ids = np.concatenate([b.visual_id for b in take(batches, N)])
  epochs = ids.reshape(BATCH, N)  # N steps of BATCH rows are BATCH epochs
  for epoch in epochs:
    assert sorted(epoch) == list(range(N))
  assert len({tuple(epoch) for epoch in epochs}) == BATCH


def test_a_batch_larger_than_the_dataset_wraps(tok):
  small = make_source(3)
  batch = next(pipeline.train_batches(small, tok, make_cfg(), start=1))
  counts = collections.Counter(batch.visual_id.tolist())
  assert set(counts) == {0, 1, 2} and max(counts.values()) <= 4


def test_seeds_differ_and_no_seed_is_another_shifted(source, tok):
  orders = []
  for seed in range(3):
    batches = pipeline.train_batches(source, tok, make_cfg(seed), start=0)
    ids = np.concatenate([b.visual_id for b in take(batches, N)])
    orders += [tuple(epoch) for epoch in ids.reshape(BATCH, N)]
  assert len(set(orders)) == len(orders)


def test_captions_are_drawn_evenly(source, tok):
  cfg = make_cfg(captions_per_visual=1, augment="none")
  drawn = collections.defaultdict(collections.Counter)
  for batch in take(pipeline.train_batches(source, tok, cfg, start=0), N * 12):
    for i, text in zip(batch.visual_id, batch.text_id, strict=True):
      drawn[int(i)][int(text)] += 1
  for i, counts in drawn.items():
    assert len(counts) == i % 4 + 1 and sum(counts.values()) == 96
    assert min(counts.values()) > 0.4 * 96 / len(counts)


def test_crops_are_drawn_anew(source, tok):
  batches = pipeline.train_batches(source, tok, make_cfg(), start=0)
  pixels = collections.defaultdict(list)
  for batch in take(batches, N):
    for i, frame in zip(batch.visual_id, batch.visual, strict=True):
      pixels[int(i)].append(frame.tobytes())
  assert all(len(set(seen)) > BATCH // 2 for seen in pixels.values())


def test_equal_strings_of_two_visuals_share_an_id(tok):
  twins = make_source(6, captions=lambda i: ("A  w1",) if i % 2 else ("a w1",))
  cfg = make_cfg(captions_per_visual=1)
  batch = next(pipeline.train_batches(twins, tok, cfg, start=0))
  assert set(batch.text_id.tolist()) == {0}


def test_clusters_are_whole_and_each_comes_once_an_epoch(source, tok):
  clusters = make_clusters(source)
  batches = pipeline.train_batches(
    source, tok, make_cfg(augment="none"), start=0, clusters=clusters
  )
  seen = []
  for pairs, judged, said_before in take(
    batches, 5
  ):  # 5 steps of 2 of 5: two epochs
    assert pairs.visual.shape[0] == BATCH and pairs.text.shape[0] == 2 * BATCH
    assert judged.visual.shape == (8, 1, 8, 8, 3) and judged.mask.all()
    assert judged.text.shape == (8, 5) and said_before is None
    np.testing.assert_array_equal(
      judged.visual[:, 0, 0, 0, 1], judged.visual_id
    )
    decoded = tok.decode(judged.text)
    for c in (0, 1):
      part = slice(4 * c, 4 * c + 4)
      rows = np.flatnonzero(
        (clusters.visual == judged.visual_id[part]).all(axis=1)
      )
      assert len(rows) == 1
      seen.append(int(rows[0]))
      for row, text in zip(clusters.text[rows[0]], decoded[part], strict=True):
        assert text in captions_of(row)
  assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))


def test_what_a_teacher_judged_comes_with_its_cluster(source, tok):
  """Offline: numbers that name their pair come back beside that pair."""
  clusters = make_clusters(source)
  cfg = make_cfg(clusters=2, augment="none")
  texts = pipeline.cluster_texts(source, tok, cfg, clusters)
  assert texts.shape == (5, 4, 5)
  # A number of each caption, made of its words.
  named = (texts.astype(np.int64) * 7 ** np.arange(5)).sum(axis=2)
  judged = 1e6 * named[..., None] + clusters.visual[:, None]
  batches = pipeline.train_batches(
    source, tok, cfg, start=0, clusters=clusters._replace(judged=judged)
  )
  for _, rows, h in take(batches, 5):
    for part in (slice(0, 4), slice(4, 8)):
      named = (rows.text[part].astype(np.int64) * 7 ** np.arange(5)).sum(axis=1)
      want = 1e6 * named[:, None] + rows.visual_id[None, part]
      np.testing.assert_array_equal(h[part], want)


def test_the_last_padded_batch_counts_once(source, tok):
  cfg = make_cfg()
  batches = list(pipeline.eval_batches(source, tok, cfg, BATCH))
  assert [int(b.mask.sum()) for b in batches] == [8, 8, 7]
  whole = joined(batches)
  assert whole.visual.shape == (24, 1, 8, 8, 3) and whole.text.shape == (48, 5)
  assert whole.visual_id[whole.mask].tolist() == list(range(N))
  assert not whole.visual[~whole.mask].any()
  assert (whole.text[-2:] == tok.pad).all()
  assert whole.text_id[-2:].tolist() == [-1, -1] and whole.visual_id[-1] == -1
  decoded = tok.decode(whole.text)
  for i in range(N):
    texts = captions_of(i)
    assert decoded[2 * i : 2 * i + 2] == [texts[0], texts[1 % len(texts)]]
  halves = [
    list(pipeline.eval_batches(source, tok, cfg, BATCH, rows=rows))
    for rows in (slice(0, 4), slice(4, 8))
  ]
  for batch, *parts in zip(batches, *halves, strict=True):
    assert_same(batch, joined(parts))


def test_eval_of_a_source_kept_larger_for_crops(tok):
  large = make_source(3, size=12)
  (batch,) = pipeline.eval_batches(large, tok, make_cfg(), 4)
  assert batch.visual.shape == (4, 1, 8, 8, 3)
  assert (batch.visual[:3, ..., 1] == np.arange(3)[:, None, None, None]).all()


def test_eval_without_captions(tok):
  bare = make_source(3, captions=lambda i: ())
  (batch,) = pipeline.eval_batches(bare, tok, make_cfg(), 4, captions=False)
  assert batch.text.shape == (4, 5) and (batch.text == tok.pad).all()
  with pytest.raises(ValueError, match="got none for 'id0' and 2 more"):
    pipeline.eval_batches(bare, tok, make_cfg(), 4)


def test_caption_table(source, tok):
  text, visual_row = pipeline.caption_table(source, tok)
  expected = [(i, c) for i in range(N) for c in captions_of(i)]
  got = list(zip(visual_row.tolist(), tok.decode(text), strict=True))
  assert got == expected


def test_errors(source, tok):
  batches = lambda **kw: pipeline.train_batches(
    source, tok, make_cfg(), **{"start": 0} | kw
  )
  with pytest.raises(ValueError, match="start: must be >= 0; got -1"):
    batches(start=-1)
  with pytest.raises(ValueError, match="rows: must be a contiguous part"):
    batches(rows=(slice(4, 9),))
  clusters = make_clusters(source)
  with pytest.raises(ValueError, match="must split as the 8 rows"):
    pipeline.train_batches(
      source,
      tok,
      make_cfg(clusters=1),
      start=0,
      rows=(slice(0, 1),),
      clusters=clusters,
    )
  with pytest.raises(ValueError, match=r"clusters\.text: must be rows of 23"):
    batches(clusters=clusters._replace(text=clusters.text + N))
  with pytest.raises(ValueError, match=r"one shape \[n,G\]"):
    batches(clusters=clusters._replace(text=clusters.text[:2]))


def test_an_error_of_a_thread_reaches_the_caller(tok):
  def broken(rows):
    raise ValueError("picture 3: must be whole")

  bad = dataclasses.replace(make_source(4), visuals=broken)
  with pytest.raises(ValueError, match="picture 3"):
    next(pipeline.train_batches(bad, tok, make_cfg(), start=0))


def test_shift_moves_pictures_and_repeats_edges():
  frames = np.zeros((1, 40, 40, 3), np.uint8)
  frames[0, 10, 20] = 255
  for down in (-2, 0, 1):
    for right in (-1, 0, 2):
      moved = transforms.shift(frames, down, right)
      assert moved.shape == frames.shape
      assert np.argwhere(moved[0, :, :, 0]).tolist() == [
        [10 + down, 20 + right]
      ]
  edge = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, axis=3)
  rows, columns = (
    np.clip(np.arange(4) - 2, 0, 3),
    np.clip(np.arange(4) + 1, 0, 3),
  )
  np.testing.assert_array_equal(
    transforms.shift(edge, 2, -1), edge[:, rows[:, None], columns]
  )


def test_each_picture_is_shifted_on_its_own_and_again_the_same(source, tok):
  large = np.zeros((N, 1, 40, 40, 3), np.uint8)
  large[:, 0, 10, 20] = 255
  wide = dataclasses.replace(source, visuals=lambda rows: large[rows])
  cfg = make_cfg(augment="shift", image_size=40)
  seen = []
  for batch in take(pipeline.train_batches(wide, tok, cfg, start=0), 8):
    for frame in batch.visual[:, 0, :, :, 0]:
      ((y, x),) = np.argwhere(frame)
      seen.append((int(y) - 10, int(x) - 20))
  both = {abs(d) for pair in seen for d in pair}
  assert both == set(range(transforms.max_shift(40, 40) + 1)) == {0, 1, 2}
  assert len(set(seen)) > 12  # of 25: rows do not move together
  (late,) = take(pipeline.train_batches(wide, tok, cfg, start=7), 1)
  np.testing.assert_array_equal(late.visual, batch.visual)
