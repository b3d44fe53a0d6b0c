"""The nouns of the framework: values that flow between its parts.

Arrays only, no behaviour. Letters used in shapes, here and everywhere:

  B batch   T frames   H W pixels   L text tokens   N visual tokens   D width
  E shared embedding   V vocabulary   Q queries   K candidates   C corpus
  R text rows: R = B * M, with M captions of each visual side by side
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
Tree = Any  # arrays in nested tuples, lists and dicts
Params = Any  # nested dict of arrays
Metrics = dict[str, Any]


class Batch(NamedTuple):
  """Visuals with their captions; rows past the data's end are masked.

  An image is a video of one frame. Text row r belongs to visual r // M, where
  M = R // B: captions of one visual share its encoding.
  """

  visual: Array  # uint8 [B,T,H,W,3], RGB
  text: Array  # int32 [R,L]: BOS, tokens, EOS, padding
  visual_id: Array  # int32 [B]
  text_id: Array  # int32 [R]: equal for equal normalised strings
  mask: Array  # bool [B]

  @property
  def captions_per_visual(self) -> int:
    return self.text.shape[0] // self.visual.shape[0]


class DistillBatch(NamedTuple):
  """Captioned pairs for the contrastive loss, clusters for the teacher.

  `clusters` holds whole clusters of `cluster_size` visuals side by side, with
  as many captions; the teacher judges every caption of a cluster against every
  visual of it. Its visuals need no caption of their own. An offline teacher
  judges before training: row r of `judged` is caption r against its cluster.
  """

  pairs: Batch
  clusters: Batch
  judged: Array | None = None  # float32 [B,cluster_size], nats


AnyBatch = Batch | DistillBatch


class Level(NamedTuple):
  """Visual tokens of one resolution, as stored."""

  latent: Array  # float [B,N,d_mem]
  mask: Array  # bool [B,N]


class Memory(NamedTuple):
  """Slow's stored tokens of a visual: levels, coarse to fine."""

  levels: tuple[Level, ...]


class TrainState(NamedTuple):
  """Arrays only: everything a checkpoint holds."""

  step: Array  # int32 []: the next step to run, which is the data state
  params: Params
  opt_state: Tree
  ema: Params | None = None  # running mean of params, where one is asked for


class Task(NamedTuple):
  """An objective as a value: pure functions that the loop does not look into.

  An objective is split where examples meet, so that a batch may be larger than
  the part that is on the device at once:

  init(key) -> params
  encode(trained, frozen, batch, key) -> tree of floats, examples in front
  loss(trained, encoded, batch) -> (scalar, metrics), of the global batch
  split_limits(batch) -> two trees, for the batch and for the encoded rows: the
    most parts that each array may be split into
  loss_is_linear: whether loss is linear in the encoded rows, which then need no
    pass of their own
  """

  init: Callable[..., Params]
  encode: Callable[..., Tree]
  loss: Callable[..., tuple[Array, Metrics]]
  split_limits: Callable[..., tuple[Tree, Tree]]
  loss_is_linear: bool = False


class Corpus(NamedTuple):
  """Fast vectors of a gallery; ids live at the edges only."""

  vectors: np.ndarray  # float32 [C,E], unit length
  ids: tuple[str, ...]  # C of them


class Candidates(NamedTuple):
  """Answers, best first; -1 pads a short row (its score is -inf)."""

  rows: Array  # int32 [Q,K]
  scores: Array  # float32 [Q,K], larger is better
