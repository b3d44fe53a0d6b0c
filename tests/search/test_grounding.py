"""Word attention: a distribution per token, of the right position."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from fs_jax import config
from fs_jax.data import tokenizer as tokenizers
from fs_jax.models import build
from fs_jax.models import slow as slow_models
from fs_jax.runs import stages
from fs_jax.search import grounding
from fs_jax.train import tasks

TEXTS = ("a red circle left of a blue square", "a blue circle above a star")


@functools.cache
def make_run(separate: bool = False, frames: int = 1) -> stages.Run:
  """Random parameters, large enough that attention is far from uniform."""
  draw = np.random.default_rng(0)
  vision = config.Vision(config.Stack(16, 1, 2, 32), 16)
  slow = config.Slow(
    vision,
    config.Stack(16, 2, 2, 32),
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
  params = jax.tree.map(
    lambda x: draw.normal(0, 0.4, x.shape).astype(np.float32),
    jax.eval_shape(task.init, jax.random.key(0)),
  )
  return stages.Run(epath.Path(pathlib.Path()), cfg, tokenizer, params, 0)


def picture(seed: int, frames: int = 1) -> np.ndarray:
  draw = np.random.default_rng(seed)
  return draw.integers(0, 256, (frames, 32, 32, 3), np.uint8)


def reading(words: list[grounding.Word], direction: str) -> list:
  return [word for word in words if word.direction == direction]


@pytest.fixture(scope="module")
def run() -> stages.Run:
  return make_run()


@pytest.mark.parametrize(("separate", "frames"), [(False, 1), (True, 2)])
def test_each_token_has_a_distribution_per_level(separate, frames):
  run = make_run(separate, frames)
  words = grounding.ground_words(run, picture(0, frames), TEXTS[0])
  forward, backward = reading(words, "forward"), reading(words, "backward")
  assert [word.token for word in forward] == [*TEXTS[0].split(), "</s>"]
  backwards = [*reversed(TEXTS[0].split()), "</s>"]
  assert [word.token for word in backward] == backwards
  assert words == [*forward, *backward]
  for word in words:
    assert [m.shape for m in word.maps] == [(2, 2), (4, 4)]
    for weights in word.maps:
      assert weights.min() >= 0
      np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)


def test_log_p_is_that_of_both_readings(run):
  words = grounding.ground_words(run, picture(0), TEXTS[0])
  model = build.slow_model(run.cfg, run.tokenizer.vocab_size)
  text = jnp.asarray(run.tokenizer.encode([TEXTS[0]]))

  @jax.jit
  def reference(params, visual):
    variables = {"params": params}
    pixels = build.pixels(run.cfg, visual)
    memory = model.apply(variables, pixels, method="encode_visual")
    states = model.apply(variables, text, method="read")[:, None]
    return model.apply(
      variables, memory, states, text[:, None], method="word_log_likelihood"
    )

  log_p = reference(run.params["slow"], picture(0)[None])
  n = int((np.asarray(text)[0, 1:] != slow_models.PAD).sum())
  assert len(words) == 2 * n == slow_models.targets_of(text)[0]
  np.testing.assert_allclose(
    [word.log_p for word in words], log_p[0, 0, :, :n].ravel(), rtol=1e-4
  )


def test_a_word_sees_only_the_words_read_before_it(run):
  """Maps lie at the input before their token: another token changes later."""
  one, two = "a red circle above", "a red square above"
  first = grounding.ground_words(run, picture(0), one)
  second = grounding.ground_words(run, picture(0), two)
  for direction, changed in (("forward", 2), ("backward", 1)):
    ours, theirs = reading(first, direction), reading(second, direction)
    assert ours[changed].token == "circle"
    for i in range(changed + 1):  # what is predicted has not been read yet
      for a, b in zip(ours[i].maps, theirs[i].maps, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    after = changed + 1
    moved = [
      np.abs(a / b - 1).max()
      for a, b in zip(ours[after].maps, theirs[after].maps, strict=True)
    ]
    assert max(moved) > 1e-3  # a hundred times what the others may differ


def test_attention_follows_the_picture(run):
  first = grounding.ground_words(run, picture(0), TEXTS[0])
  second = grounding.ground_words(run, picture(1), TEXTS[0])
  assert np.abs(first[1].maps[1] - second[1].maps[1]).max() > 1e-3
  assert first[1].log_p != second[1].log_p


def test_a_matching_slow_is_refused(run):
  slow = dataclasses.replace(run.cfg.slow, loss="matching")
  init = config.Init(teacher="fast")
  cfg = dataclasses.replace(run.cfg, slow=slow, init=init)
  other = run._replace(cfg=cfg)
  with pytest.raises(ValueError, match="predicts words"):
    grounding.ground_words(other, picture(0), TEXTS[0])
