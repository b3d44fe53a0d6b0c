"""Where Slow looks while it predicts each word, as maps for people to see.

Ranking never needs this. Attention is read from what the decoder sows, for one
visual and one text at a time.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from fs_jax import config, types
from fs_jax.models import build
from fs_jax.models import slow as slow_models
from fs_jax.runs import stages

DIRECTIONS: tuple[Literal["forward", "backward"], ...] = ("forward", "backward")


class Word(NamedTuple):
  """A token of a caption, as Slow predicts it in one direction."""

  token: str
  direction: Literal["forward", "backward"]
  log_p: float  # nats, given the visual and the words read before it
  maps: tuple[Float[np.ndarray, "h w"], ...]  # one per level, each sums to 1


def ground_words(
  run: stages.Run, visual: UInt8[np.ndarray, "T H W 3"], text: str
) -> list[Word]:
  """Finds what Slow looks at to predict each token of a text.

  The tokens of the forward direction come first, then those of the backward
  one, which starts at the last word. EOS ends both. The sum of all log_p is
  h(x, y). A map is the mean over the heads and layers that look at its level,
  summed over frames; the coarse level comes first.

  Args:
    run: a Slow trained for captioning.
    visual: the frames.
    text: the caption.

  Raises:
    ValueError: a Slow that judges pairs and predicts no words.
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
  targets = np.asarray(slow_models.directions(jnp.asarray(row))[1])[0]  # [2,I]
  grids = cfg.slow.grids(visual.shape[1], visual.shape[0])
  maps = [  # [2,I,h,w] a level
    np.asarray(w).reshape(*w.shape[:2], *grid).sum(axis=2)
    for w, grid in zip(weights, grids, strict=True)
  ]
  return [
    Word(token, direction, float(log_p[d, i]), tuple(m[d, i] for m in maps))
    for d, direction in enumerate(DIRECTIONS)
    for i, token in enumerate(run.tokenizer.words(targets[d]))
  ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(
  cfg: config.Config,
  vocabulary: int,
  params: types.Params,
  visual: UInt8[jax.Array, "1 T H W 3"],
  text: Int[jax.Array, "1 L"],
) -> tuple[Float[jax.Array, "2 I"], list[Float[jax.Array, "2 I N"]]]:
  """log p of every target, and each level's attention at the same positions.

  Input i predicts target i of its direction. A decoder for both directions has
  them folded into the positions of a row, the forward direction first.
  """
  slow = build.bind_slow(cfg, vocabulary, params)
  memory = slow.encode_visual(build.pixels(cfg, visual))
  states = slow.read(text)
  words, sown = build.slow_model(cfg, vocabulary).apply(
    {"params": params},
    memory,
    states[:, None],
    text[:, None],
    method="word_log_likelihood",
    mutable=["intermediates"],
  )
  readers = sown["intermediates"]
  weights = []
  for i in range(len(memory.levels)):
    # [layers,1,2*I,heads,N] of one reader, [layers,1,I,heads,N] of each of two
    parts = [
      readers[f"readers_{r}"][f"level{i}"]["cross"]["attention"][0]
      for r in range(len(readers))
    ]
    both = jnp.concatenate(parts, axis=2)[:, 0].mean(axis=(0, 2))
    weights.append(both.reshape(*words.shape[2:], -1))
  return words[0, 0], weights
