"""Where Slow looks while it predicts each word: pictures for people.

Ranking never asks for this: attention is read from what the decoder sows, one
visual and one text at a time.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from fs_jax import config, runs, tasks, types


class Word(NamedTuple):
  """A token of a caption, as Slow's forward reading predicts it."""

  token: str
  log_p: float  # nats, given the words before it and the visual
  maps: tuple[Float[np.ndarray, "h w"], ...]  # a level each, sums to 1


def word_attention(
  run: runs.Run, visual: UInt8[np.ndarray, "T H W 3"], text: str
) -> list[Word]:
  """The tokens of a text with what Slow looked at to predict each.

  A map is the mean over the heads and layers that look at its level, coarse
  level first, summed over frames. The last token is EOS.

  Raises:
    ValueError: a Slow that judges pairs, and predicts no words.
  """
  cfg = run.cfg
  if cfg.slow is None or cfg.slow.loss != "captioning":
    raise ValueError(
      "slow.loss: word attention needs a Slow that predicts words, "
      f"'captioning'; got {None if cfg.slow is None else cfg.slow.loss!r}. "
      "train one with --config.slow.loss=captioning"
    )
  row = run.tokenizer.encode([text])
  log_p, weights = _look(
    cfg, run.tokenizer.vocab_size, run.params["slow"], visual[None], row
  )
  tokens = run.tokenizer.words(row[0])[1:]  # targets: all but BOS
  height, width = (side // cfg.slow.vision.patch for side in visual.shape[1:3])
  maps = [
    np.asarray(w).reshape(len(w), -1, height << i, width << i).sum(axis=1)
    for i, w in enumerate(weights)
  ]
  return [
    Word(token, float(log_p[i]), tuple(m[i] for m in maps))
    for i, token in enumerate(tokens)
  ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(
  cfg: config.Config,
  vocabulary: int,
  params: types.Params,
  visual: UInt8[jax.Array, "1 T H W 3"],
  text: Int[jax.Array, "1 L"],
) -> tuple[Float[jax.Array, " I"], list[Float[jax.Array, "I N"]]]:
  """log p of every target, and a level's attention at the same positions.

  Input i predicts token i + 1. Sequences and directions are folded into the
  positions of a row: the forward reading's come first.
  """
  model = tasks.slow_model(cfg, vocabulary)
  variables = {"params": params}
  memory = model.apply(
    variables, tasks.pixels(cfg, visual), method="encode_visual"
  )
  read: Any = model.apply(variables, text, method="read")
  words, sown = model.apply(
    variables,
    memory,
    read[:, None],
    text[:, None],
    method="word_log_likelihood",
    mutable=["intermediates"],
  )
  reader = sown["intermediates"]["readers_0"]  # forward, or both directions
  length = text.shape[1] - 1  # I
  weights = []
  for i in range(len(reader)):
    (level,) = reader[f"level{i}"]["cross"]["attention"]
    # [layers,1,S*2*I,heads,N], or [layers,1,S*I,heads,N] of two readers; S = 1
    weights.append(level[:, 0, :length].mean(axis=(0, 2)))
  return words[0, 0, 0], weights
