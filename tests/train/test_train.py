"""What a stage starts from, and the curve that is watched."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from fs_jax import config, trees
from fs_jax.data import sources
from fs_jax.data import tokenizer as tokenizers
from fs_jax.evaluate import validation
from fs_jax.models import build, slow
from fs_jax.runs import stages
from fs_jax.search import fusion, weigh
from fs_jax.train import tasks, train
from tests.support import synthetic

N = 24
WORDS = " ".join(map(str, range(synthetic.VOCABULARY - 4)))


def run_of(stage, **fields):
  cfg = synthetic.cfg(stage, **fields)
  tokenizer = tokenizers.train([WORDS], cfg.tokens)
  task = tasks.make(cfg, tokenizer.vocab_size)
  draw = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(draw.normal(0, 0.4, x.shape), jnp.float32),
    jax.eval_shape(task.init, jax.random.key(0)),
  )
  return stages.Run(epath.Path("nowhere"), cfg, tokenizer, params, 1)


def source_of():
  pixels = synthetic.batch(3, rows=N).visual
  return sources.Source(
    ids=tuple(f"v{i}" for i in range(N)),
    all_captions=tuple((f"{i % 8} {i % 5}", "7") for i in range(N)),
    groups=np.full(N, -1, np.int32),
    visuals=lambda rows: pixels[np.asarray(rows, int)],
  )


@pytest.mark.parametrize(
  ("stage", "sample", "size"),
  [("fast", 6, 6), ("fast", 99, N), ("slow", 99, N // 4)],
)
def test_quick_recall_ranks_a_sample_by_its_own_scores(stage, sample, size):
  run = run_of(stage, train={"eval_sample": sample})
  source = source_of()
  with mock.patch.object(sources, "open_split", return_value=source):
    recall = validation.quick_recall(run.cfg, run.tokenizer)
  got = recall(run.params)
  texts = jnp.asarray(
    run.tokenizer.encode([source.captions(i)[0] for i in range(size)])
  )
  seen = build.pixels(run.cfg, source.visuals(np.arange(size)))
  variables = {"params": run.params[stage]}
  if stage == "fast":
    model = build.fast_model(run.cfg, run.tokenizer.vocab_size)
    out = jax.jit(model.apply)(variables, seen, texts)
    scores = np.asarray(out["text"]) @ np.asarray(out["visual"]).T
  else:
    model = build.slow_model(run.cfg, run.tokenizer.vocab_size)

    @jax.jit
    def of_visual(one):
      memory = model.apply(variables, one, method="encode_visual")
      return model.apply(
        variables, memory, texts[None], method="log_likelihood"
      )[0][0]

    scores = np.stack([of_visual(x[None]) for x in seen], axis=1)
  rank = (scores > np.diagonal(scores)[:, None]).sum(axis=1)
  assert got == {
    "R@1": pytest.approx((rank < 1).mean()),
    "R@5": pytest.approx((rank < 5).mean()),
  }
  other = (scores > np.diagonal(scores)[None]).sum(axis=0)
  assert (rank < 1).mean() != (other < 1).mean() or (rank < 5).mean() != (
    other < 5
  ).mean()  # visuals that look for texts would be counted otherwise


def test_slow_validates_as_many_pairs_at_once_as_it_trains(monkeypatch):
  run = run_of("slow", train={"eval_sample": 99, "batch_size": 8})
  at_once, score = [], slow.Slow.score

  def spied(self, memory, states, text):
    at_once.append(states.shape[0] * states.shape[1])
    return score(self, memory, states, text)

  monkeypatch.setattr(slow.Slow, "score", spied)
  with mock.patch.object(sources, "open_split", return_value=source_of()):
    recall = validation.quick_recall(run.cfg, run.tokenizer)
  assert set(recall(run.params)) == {"R@1", "R@5"}
  assert at_once
  assert max(at_once) <= run.cfg.train.batch_size < (N // 4) ** 2


def test_a_stage_starts_from_what_its_prefixes_name():
  fast = run_of("fast")
  later = synthetic.cfg(
    "slow",
    init=config.Init("fast", (("fast/vision/", "slow/encoder/vision/"),)),
  )
  assert train._first_params(later, None) is None
  given = train._first_params(later, fast)
  assert set(given) == {"slow"}
  theirs = fast.params["fast"]["vision"]
  jax.tree.map(
    np.testing.assert_array_equal, given["slow"]["encoder"]["vision"], theirs
  )
  every = train._first_params(synthetic.cfg(init=config.Init("fast")), fast)
  assert trees.names(every) == trees.names(fast.params)
  bad = dataclasses.replace(later, init=config.Init("fast", (("slow/", "x/"),)))
  with pytest.raises(ValueError, match=r"'fast'; got 'slow/'\. its names"):
    train._first_params(bad, fast)


def test_a_later_stage_reads_with_the_words_of_the_earlier():
  fast, cfg = run_of("fast"), synthetic.cfg()
  assert train._tokenizer(cfg, source_of(), fast) is fast.tokenizer
  fresh = train._tokenizer(cfg, source_of(), None)
  assert fresh.hash != fast.tokenizer.hash
  assert fresh.encode(["7"]).tolist() == fresh.encode(["7 "]).tolist()
  assert fresh.unknown not in fresh.encode(["0 1 2 3 4"])  # of the captions


def test_weights_of_other_captions_are_fitted_again(tmp_path):
  fast, slow = (
    run_of(stage)._replace(folder=epath.Path(tmp_path / stage))
    for stage in ("fast", "slow")
  )
  source = source_of()

  def needed(source):
    with mock.patch.object(sources, "open_lazily", return_value=source):
      return weigh.weights_needed(fast, slow)

  found, made_from = needed(source)
  assert found
  fit = fusion.Weights(1.0, 0.0, 1.0, 0.0, (), 2, 1, 0)
  fusion.save(slow.folder, fit, made_from)
  assert not needed(source)[0]
  captions = (("another one",), *source.all_captions[1:])
  assert needed(dataclasses.replace(source, all_captions=captions))[0]
