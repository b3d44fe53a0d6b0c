"""Batches of rows, decoded, augmented and prefetched by threads.

A batch is a function of its step (see `order`): the data state is one integer,
and the numbers of threads and processes change nothing.
"""

import math
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import grain
import jax
import numpy as np

from fs_jax import config, types
from fs_jax.data import captions as caption_tables
from fs_jax.data import order, sources, tokenizer, transforms

Tree = TypeVar("Tree")  # of arrays


class Clusters(NamedTuple):
  """Candidate lists, each judged whole by the teacher."""

  source: sources.Source  # the captioned visuals first, then any others
  visual: np.ndarray  # int32 [n,G], rows of `source`
  text: np.ndarray  # int32 [n,G], captioned rows, whose captions are judged
  # float32 [n,G,G], caption by visual, nats: an offline teacher's judgement.
  # Each row of a cluster then always has the same caption.
  judged: np.ndarray | None = None


def train_batches(
  source: sources.Source,
  tok: tokenizer.Tokenizer,
  cfg: config.Config,
  *,
  start: int,
  rows: tuple[slice, ...] | None = None,
  clusters: Clusters | None = None,
) -> Iterator[types.Batch | types.DistillBatch]:
  """Yields batches of numpy arrays without end, from step `start` on.

  Args:
    source: captioned visuals.
    tok: makes the text rows.
    cfg: batch size, seed, captions of each visual, augmentation, threads.
    start: the first step, which is the whole state of the data.
    rows: spans of the global batch that this process makes; None = all. Rows
      of clusters follow in proportion.
    clusters: if given, batches are DistillBatch, with `cfg.distill.clusters`
      clusters a step: G visuals, and one caption of each of G text rows.

  Raises:
    ValueError: a visual without captions, or arguments that do not fit.
  """
  size = cfg.train.batch_size
  spans = [_check_rows(r, size) for r in (rows or (slice(0, size),))]
  if start < 0:
    raise ValueError(f"start: must be >= 0; got {start}. pass 0 to begin")
  captions = caption_tables.tokenise(source, tok)
  caption_tables.check_captioned(captions, source, np.arange(len(source)))

  def pairs_of_step(t: int) -> types.Batch:
    parts = [
      _read_pairs(source, captions, cfg, t * size + r.start, r.stop - r.start)
      for r in spans
    ]
    return _concatenate(parts)

  steps = range(start, sys.maxsize)
  if clusters is None:
    return _prefetch(pairs_of_step, steps, cfg.data.threads)

  _check_clusters(clusters, source)
  caption_tables.check_captioned(captions, source, np.unique(clusters.text))
  judged = cfg.distill.clusters * clusters.visual.shape[-1]
  cluster_spans = [
    (
      order.scale_row(r.start, size, judged),
      order.scale_row(r.stop, size, judged),
    )
    for r in spans
  ]
  text_ids = None
  if clusters.judged is not None:
    text_ids = _choose_for_clusters(captions, cfg, clusters.text.ravel(), 0)

  def distill_step(t: int) -> types.DistillBatch:
    parts = [
      _read_clusters(
        clusters,
        captions,
        cfg,
        text_ids,
        np.arange(t * judged + first, t * judged + last),
      )
      for first, last in cluster_spans
    ]
    return types.DistillBatch(pairs_of_step(t), *_concatenate(parts))

  return _prefetch(distill_step, steps, cfg.data.threads)


def _concatenate(parts: list[Tree]) -> Tree:
  """Joins trees of arrays along their rows."""
  if len(parts) == 1:
    return parts[0]
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def cluster_texts(
  source: sources.Source,
  tok: tokenizer.Tokenizer,
  cfg: config.Config,
  clusters: Clusters,
) -> np.ndarray:
  """The captions that an offline teacher judges: int32 [n,G,L].

  `train_batches` shows the same ones in every epoch, as they are judged once.
  """
  _check_clusters(clusters, source)
  captions = caption_tables.tokenise(source, tok)
  caption_tables.check_captioned(captions, source, np.unique(clusters.text))
  text_ids = _choose_for_clusters(captions, cfg, clusters.text.ravel(), 0)
  return captions.tokens[text_ids].reshape(*clusters.text.shape, -1)


def eval_batches(
  source: sources.Source,
  tok: tokenizer.Tokenizer,
  cfg: config.Config,
  batch_size: int,
  captions: bool = True,
  rows: slice | None = None,
) -> Iterator[types.Batch]:
  """Yields every example once, in order; the last batch is padded and masked.

  Text rows are the first M captions of each visual, or with `captions=False`
  one row of padding each, for visuals that may have none. Padding rows have
  visual 0, text of padding and ids -1. `rows` is this process's span of the
  batch; None = all.
  """
  rows = _check_rows(rows, batch_size)
  per_visual = cfg.data.captions_per_visual
  table = None
  if captions:
    table = caption_tables.tokenise(source, tok)
    caption_tables.check_captioned(table, source, np.arange(len(source)))

  def step(t: int) -> types.Batch:
    numbers = np.arange(rows.start, rows.stop) + t * batch_size
    mask = numbers < len(source)
    present = numbers[mask]
    visual = _resize(source.visuals(present), cfg.data)
    if table is None:
      text_id = np.full(len(present), -1, np.int32)
      text = np.full((len(present), tok.length), tok.pad, np.int32)
      m = 1
    else:
      m = per_visual
      places = np.arange(m) % table.counts[present][:, None]
      text_id = table.at(present, places)
      text = table.tokens[text_id]
    return types.Batch(
      visual=_pad(visual, len(numbers), 0),
      text=_pad(text, len(numbers) * m, tok.pad),
      visual_id=_pad(present.astype(np.int32), len(numbers), -1),
      text_id=_pad(text_id, len(numbers) * m, -1),
      mask=mask,
    )

  steps = range(math.ceil(len(source) / batch_size))
  return _prefetch(step, steps, cfg.data.threads)


def caption_table(
  source: sources.Source, tok: tokenizer.Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
  """All captions, in order: text int32 [n,L], visual row int32 [n] of each."""
  captions = caption_tables.tokenise(source, tok)
  visual_row = np.repeat(
    np.arange(len(source), dtype=np.int32), captions.counts
  )
  return captions.tokens[captions.text_id], visual_row


def _read_pairs(
  source: sources.Source,
  captions: caption_tables.Captions,
  cfg: config.Config,
  first: int,
  count: int,
) -> types.Batch:
  """Training rows number first .. first + count - 1."""
  visual_id = order.shuffle(cfg.seed, order.SHUFFLE, first, count, len(source))
  text_id = captions.choose(
    (cfg.seed, order.CAPTION), visual_id, first, cfg.data.captions_per_visual
  )
  return types.Batch(
    visual=_read_frames(source, visual_id, cfg, order.CROP, first),
    text=captions.tokens[text_id],
    visual_id=visual_id.astype(np.int32),
    text_id=text_id,
    mask=np.ones(count, bool),
  )


def _read_clusters(
  clusters: Clusters,
  captions: caption_tables.Captions,
  cfg: config.Config,
  text_ids: np.ndarray | None,
  numbers: np.ndarray,
) -> tuple[types.Batch, np.ndarray | None]:
  """Consecutive rows of the shuffled, repeated clusters, and their judgement.

  `text_ids` holds the text_id of each row of all clusters if it never changes.
  """
  n, width = clusters.visual.shape
  cluster, column = order.shuffle_clusters(cfg.seed, numbers, n, width)
  visual_id = clusters.visual[cluster, column]
  first = int(numbers[0])
  if text_ids is None:
    visuals = clusters.text[cluster, column]
    text_id = _choose_for_clusters(captions, cfg, visuals, first)
  else:
    text_id = text_ids[cluster * width + column]
  stream = order.CROP + order.CLUSTERS
  batch = types.Batch(
    visual=_read_frames(clusters.source, visual_id, cfg, stream, first),
    text=captions.tokens[text_id],
    visual_id=visual_id.astype(np.int32),
    text_id=text_id,
    mask=np.ones(len(numbers), bool),
  )
  if clusters.judged is None:
    return batch, None
  return batch, clusters.judged[cluster, column]


def _choose_for_clusters(
  captions: caption_tables.Captions,
  cfg: config.Config,
  visuals: np.ndarray,
  first: int,
) -> np.ndarray:
  """Draws one caption of each captioned visual -> text_id int32 [n]."""
  key = cfg.seed, order.CAPTION + order.CLUSTERS
  return captions.choose(key, visuals, first, 1)


def _read_frames(
  source: sources.Source,
  rows: np.ndarray,
  cfg: config.Config,
  stream: int,
  first: int,
) -> np.ndarray:
  """Frames of the rows, augmented: uint8 [B,T,H,W,3]."""
  frames = source.visuals(rows)
  size = cfg.data.image_size
  key = cfg.seed, stream
  match cfg.data.augment:
    case "none":
      return frames
    case "crop":
      cropped = np.empty((*frames.shape[:2], size, size, 3), np.uint8)
      for k in range(len(rows)):
        generator = order.make_generator(key, first + k)
        cropped[k] = transforms.random_crop(frames[k], size, generator)
      return cropped
    case "shift":
      most = transforms.max_shift(*frames.shape[2:4])
      shifts = order.draw_shifts(key, first, len(rows), most)
      shifted = np.empty_like(frames)
      for k, (down, right) in enumerate(shifts):
        shifted[k] = transforms.shift(frames[k], down, right)
      return shifted


def _resize(frames: np.ndarray, cfg: config.Data) -> np.ndarray:
  """Frames [B,T,H,W,3] at evaluation's size; larger ones were for crops."""
  size = cfg.image_size
  if frames.shape[2:4] == (size, size):
    return frames
  flat = frames.reshape(-1, *frames.shape[2:])
  flat = np.stack([transforms.resize(f, size, cfg.resize) for f in flat])
  return flat.reshape(*frames.shape[:2], size, size, 3)


def _prefetch(
  step: Callable[[int], Tree], steps: range, threads: int
) -> Iterator[Tree]:
  """Yields the steps' results in order; threads make them ahead of use."""
  # One spare batch: a thread starts the next while one is consumed.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=threads + 1
  )
  numbers = grain.MapDataset.range(steps.start, steps.stop)
  return iter(numbers.map(step).to_iter_dataset(options))


def _pad(array: np.ndarray, length: int, value: int) -> np.ndarray:
  if len(array) == length:
    return array
  padded = np.full((length, *array.shape[1:]), value, array.dtype)
  padded[: len(array)] = array
  return padded


def _check_rows(rows: slice | None, size: int) -> slice:
  rows = slice(0, size) if rows is None else rows
  if rows.step not in (None, 1) or not 0 <= rows.start < rows.stop <= size:
    raise ValueError(
      f"rows: must be a contiguous part of the {size} rows of a batch; got "
      f"{rows}. pass slice(first, last)"
    )
  return rows


def _check_clusters(clusters: Clusters, source: sources.Source) -> None:
  visual, text = clusters.visual, clusters.text
  if visual.shape != text.shape or visual.ndim != 2 or not visual.size:
    raise ValueError(
      "clusters: visual and text must have one shape [n,G]; got "
      f"{visual.shape} and {text.shape}. mine them again"
    )
  for name, rows, count in (
    ("visual", visual, len(clusters.source)),
    ("text", text, len(source)),
  ):
    if rows.min() < 0 or rows.max() >= count:
      raise ValueError(
        f"clusters.{name}: must be rows of {count} examples; got "
        f"{rows.min()} to {rows.max()}. mine them again"
      )
