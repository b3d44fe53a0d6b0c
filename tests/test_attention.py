"""Word attention: a distribution per token, of the right position."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from etils import epath

from fs_jax import attention, config, runs, tasks
from fs_jax.data import tokenizer as tokenizers
from fs_jax.models import slow as slow_models

TEXTS = ("a red circle left of a blue square", "a blue circle above a star")


def make_run(separate: bool = False, frames: int = 1) -> runs.Run:
  """Random parameters, large enough that attention is far from uniform."""
  vision = config.Vision(config.Stack(16, 1, 2, 32), 16)
  slow = config.Slow(
    vision,
    config.Stack(16, 3, 2, 32),
    levels=2,
    widths=(8,),
    stem=8,
    d_mem=8,
    separate_directions=separate,
    finer_frames=frames,
  )
  cfg = config.Config(
    stage="slow",
    fast=config.Fast(vision, config.Text(config.Stack(16, 1, 2, 32)), 16),
    slow=slow,
    data=config.Data(image_size=32, frames=frames),
    tokens=config.Tokens(length=14),
  )
  tokenizer = tokenizers.train(TEXTS, cfg.tokens)
  task = tasks.make(cfg, tokenizer.vocab_size)
  params = jax.jit(task.init)(jax.random.key(0))
  params = jax.tree.map(lambda x: 2 * x, params)
  return runs.Run(epath.Path(pathlib.Path()), cfg, tokenizer, params, 0)


def picture(seed: int, frames: int = 1) -> np.ndarray:
  draw = np.random.default_rng(seed)
  return draw.integers(0, 256, (frames, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def run() -> runs.Run:
  return make_run()


@pytest.mark.parametrize(
  ("separate", "frames"), [(False, 1), (True, 1), (False, 2)]
)
def test_each_token_has_a_distribution_per_level(separate, frames):
  run = make_run(separate, frames)
  words = attention.word_attention(run, picture(0, frames), TEXTS[0])
  assert [word.token for word in words] == [*TEXTS[0].split(), "</s>"]
  for word in words:
    assert [m.shape for m in word.maps] == [(2, 2), (4, 4)]
    for weights in word.maps:
      assert weights.min() >= 0
      np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("separate", [False, True])
def test_log_p_is_of_the_forward_reading(separate):
  run = make_run(separate)
  words = attention.word_attention(run, picture(0), TEXTS[0])
  model = tasks.slow_model(run.cfg, run.tokenizer.vocab_size)
  variables = {"params": run.params["slow"]}
  text = run.tokenizer.encode([TEXTS[0]])
  memory = model.apply(
    variables,
    tasks.pixels(run.cfg, picture(0)[None]),
    method="encode_visual",
  )
  states = model.apply(variables, text, method="read")[:, None]
  log_p = model.apply(
    variables, memory, states, text[:, None], method="word_log_likelihood"
  )
  targets = np.asarray(slow_models.directions(text)[1])[0, 0]
  n = int((targets != slow_models.PAD).sum())
  assert run.tokenizer.words(targets) == [word.token for word in words]
  np.testing.assert_allclose(
    [word.log_p for word in words], log_p[0, 0, 0, :n], rtol=1e-4
  )


def test_a_word_sees_only_the_words_before_it(run):
  """Maps lie at the input before their token: another token changes later."""
  one, two = "a red circle above", "a red square above"
  first = attention.word_attention(run, picture(0), one)
  second = attention.word_attention(run, picture(0), two)
  for i in range(3):  # "a", "red", and the third itself, which is predicted
    for a, b in zip(first[i].maps, second[i].maps, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5)
  assert np.abs(first[3].maps[1] - second[3].maps[1]).max() > 1e-3


def test_attention_follows_the_picture(run):
  first = attention.word_attention(run, picture(0), TEXTS[0])
  second = attention.word_attention(run, picture(1), TEXTS[0])
  assert np.abs(first[1].maps[1] - second[1].maps[1]).max() > 1e-3
  assert first[1].log_p != second[1].log_p


def test_a_matching_slow_is_refused(run):
  slow = dataclasses.replace(run.cfg.slow, loss="matching")
  other = run._replace(cfg=dataclasses.replace(run.cfg, slow=slow))
  with pytest.raises(ValueError, match="predicts words"):
    attention.word_attention(other, picture(0), TEXTS[0])
