"""Clusters: what a Fast confuses, mined once and read by that Fast only."""

import dataclasses
import itertools
import types as builtin
from unittest import mock

import jax
import numpy as np
import pytest
from etils import epath

from fs_jax import config
from fs_jax.data import pipeline, sources
from fs_jax.data import tokenizer as tokenizers
from fs_jax.gallery import encode
from fs_jax.runs import stages
from fs_jax.search import scorer
from fs_jax.train import clusters as clustering
from fs_jax.train import tasks
from tests.support import synthetic

CAPTIONED, MORE, SIZE = 12, 7, 4


def source(size, name, captions=1):
  return sources.Source(
    ids=tuple(f"{name}{i}" for i in range(size)),
    all_captions=tuple(("a b",) * captions for _ in range(size)),
    groups=np.full(size, -1, np.int32),
    visuals=lambda rows: np.zeros((len(rows), 1, 4, 4, 3), np.uint8),
  )


def vectors_of(run, of):
  del run
  x = np.random.default_rng(3).normal(size=(len(of), 5)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def run_of(digest="a"):
  return builtin.SimpleNamespace(contract={"fast": {"digest": digest}})


def cfg_of(seed=0, **distill):
  values = {"cluster_size": SIZE, "lists": 2 * CAPTIONED, "clusters": 2}
  return synthetic.cfg(
    "distill", seed=seed, distill=config.Distill(**values | distill)
  )


def clusters(folder, run=None, more=MORE, cfg=None, captioned=CAPTIONED):
  run = run_of() if run is None else run
  cfg = cfg_of() if cfg is None else cfg
  others = source(more, "more", 0) if more else None
  with mock.patch.object(
    encode, "encode_visuals", side_effect=vectors_of
  ) as of:
    made = clustering.mine(
      run, source(captioned, "own"), others, cfg, epath.Path(folder)
    )
  return made, of.call_count


def test_a_cluster_is_the_nearest_to_a_captioned_visual(tmp_path):
  made, _ = clusters(tmp_path)
  vectors = vectors_of(None, made.source)
  assert made.visual.shape == made.text.shape == (2 * CAPTIONED, SIZE)
  seeds = made.visual[:, 0]  # nothing is nearer to it than itself
  for seed, visual, text in zip(seeds, made.visual, made.text, strict=True):
    near = np.argsort(-(vectors @ vectors[seed]), kind="stable")
    np.testing.assert_array_equal(visual, near[:SIZE])
    np.testing.assert_array_equal(text, near[near < CAPTIONED][:SIZE])
  # Each captioned visual is a seed as often as any other, in no order.
  assert sorted(seeds) == sorted(2 * list(range(CAPTIONED)))
  assert list(seeds) != sorted(seeds)


def test_visuals_without_captions_are_candidates(tmp_path):
  made, _ = clusters(tmp_path)
  assert len(made.source) == CAPTIONED + MORE
  assert made.source.ids[CAPTIONED:] == tuple(f"more{i}" for i in range(MORE))
  assert made.visual.max() >= CAPTIONED
  assert made.text.max() < CAPTIONED
  alone, _ = clusters(tmp_path / "alone", more=0)
  assert len(alone.source) == CAPTIONED
  np.testing.assert_array_equal(alone.visual, alone.text)


def test_lists_are_mined_once(tmp_path):
  made, asked = clusters(tmp_path)
  again, asked_again = clusters(tmp_path)
  assert (asked, asked_again) == (1, 0)
  for name in ("visual", "text"):
    np.testing.assert_array_equal(getattr(made, name), getattr(again, name))
  other, _ = clusters(tmp_path / "other", cfg=cfg_of(seed=1))
  assert (other.visual != made.visual).any()


def test_lists_of_another_fast_gallery_or_config_are_mined_again(
  tmp_path, capsys
):
  for change, said in (
    ({"run": run_of("b")}, "fast.digest: 'a' and 'b'"),
    ({"more": MORE + 1}, "items.count: 19 and 20"),
    ({"cfg": cfg_of(seed=1)}, "config.seed: 0 and 1"),
    ({"cfg": cfg_of(alpha=2.0)}, "config.distill.alpha: 1.0 and 2.0"),
  ):
    clusters(tmp_path)
    capsys.readouterr()
    made, asked = clusters(tmp_path, **change)
    assert asked == 1
    assert (
      f"made again: {tmp_path / 'clusters'} was made from another {said}"
      in (capsys.readouterr().err)
    )
    again, asked = clusters(tmp_path, **change)
    assert asked == 0
    np.testing.assert_array_equal(made.visual, again.visual)


def test_damaged_lists_are_refused(tmp_path):
  clusters(tmp_path)
  path = tmp_path / "clusters" / "visual.npy"
  bits = bytearray(path.read_bytes())
  bits[-1] ^= 1
  path.write_bytes(bits)
  with pytest.raises(ValueError, match=r"visual\.npy"):
    clusters(tmp_path)


def test_a_cluster_no_larger_than_the_split(tmp_path):
  clusters(tmp_path, captioned=SIZE)
  with pytest.raises(
    ValueError, match=r"distill\.cluster_size: must be at most the 3 captioned"
  ):
    clusters(tmp_path / "few", captioned=SIZE - 1)


@pytest.mark.slow
def test_slow_judges_once_what_it_says_in_a_step(tmp_path):
  """Offline scores are the online teacher's, list by list; then only read."""
  cfg = synthetic.cfg("distill", distill={"teacher": "offline", "lists": 5})
  tok = tokenizers.train(["red fox", "blue car"], cfg.tokens)
  task = tasks.make(synthetic.cfg("slow"), tok.vocab_size)
  params = task.init(jax.random.key(0))
  slow = stages.Run(epath.Path(tmp_path), synthetic.cfg("slow"), tok, params, 0)
  own = dataclasses.replace(
    source(CAPTIONED, "own"),
    all_captions=(("red fox", "blue red car fox"),) * CAPTIONED,
    visuals=lambda rows: np.stack(
      [
        np.random.default_rng(row).integers(
          0, 256, (1, synthetic.IMAGE, synthetic.IMAGE, 3), np.uint8
        )
        for row in rows
      ]
    ),
  )
  rng = np.random.default_rng(0)
  found = pipeline.Clusters(
    own, *rng.integers(0, CAPTIONED, (2, 5, SIZE)).astype(np.int32)
  )
  made = clustering.judge(slow, own, found, cfg, epath.Path(tmp_path))
  assert made.judged.shape == (5, SIZE, SIZE)
  batches = pipeline.train_batches(own, tok, cfg, start=0, clusters=made)
  score = jax.jit(tasks.judge(cfg, tok.vocab_size))
  for batch in itertools.islice(batches, 4):
    np.testing.assert_allclose(
      batch.judged, score(params["slow"], batch.clusters), rtol=1e-5
    )
  assert not (tmp_path / "memories").exists()
  with mock.patch.object(scorer, "Scorer", side_effect=AssertionError):
    again = clustering.judge(slow, own, found, cfg, epath.Path(tmp_path))
  np.testing.assert_array_equal(made.judged, again.judged)
  other = found._replace(visual=found.visual[::-1])
  turned = clustering.judge(slow, own, other, cfg, epath.Path(tmp_path))
  assert (turned.judged != made.judged).any()  # not the scores kept before
  changed = slow._replace(params=jax.tree.map(lambda x: x + 0.1, params))
  others = clustering.judge(changed, own, found, cfg, epath.Path(tmp_path))
  assert (others.judged != made.judged).any()
  again = clustering.judge(slow, own, found, cfg, epath.Path(tmp_path))
  np.testing.assert_array_equal(again.judged, made.judged)


def test_lists_of_a_batch_need_no_fast(tmp_path):
  def of(seed=0):
    cfg = cfg_of(seed, candidates="batch", lists=50)
    return clustering.mine(
      None, source(CAPTIONED, "own"), source(MORE, "more", 0), cfg, tmp_path
    )

  made = of()
  assert made.visual.shape == made.text.shape == (50, SIZE)
  assert made.visual.dtype == made.text.dtype == np.int32
  own = SIZE // 2
  np.testing.assert_array_equal(made.visual[:, :own], made.text[:, :own])
  assert made.text.max() < CAPTIONED <= made.visual.max()
  assert set(made.visual.ravel()) == set(range(CAPTIONED + MORE))
  np.testing.assert_array_equal(made.visual, of().visual)
  assert (made.visual != of(seed=1).visual).any()
  assert not list(tmp_path.iterdir())
