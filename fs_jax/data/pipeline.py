"""Batches by number: the only module that knows grain.

Row r of step t is example number t * B + r of the dataset, shuffled anew each
epoch and repeated for ever; which captions it brings and how it is cropped
follow from the seed and that number. So a batch is a pure function of its
step: the data state is one integer, any process can make any rows of any step,
and threads or process counts change nothing.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from fs_jax import config, types
from fs_jax.data import order, sources, tokenizer, transforms

# What is drawn, apart from each other: the first half of a generator's key is
# the seed, the second one of these.
_SHUFFLE, _CAPTION, _CROP = 0, 1, 2
_CLUSTERS = 3  # added to each for the rows of clusters


class Clusters(NamedTuple):
  """Lists of candidates that the teacher judges whole."""

  source: sources.Source  # the captioned visuals first, then any others
  visual: np.ndarray  # int32 [n,G], rows of `source`
  text: np.ndarray  # int32 [n,G], captioned rows, whose captions are judged
  # float32 [n,G,G], caption by visual, nats: what an offline teacher said.
  # Captions are then the same whenever a cluster is seen.
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
  """Endless batches of numpy arrays, from step `start` on.

  Args:
    source: captioned visuals.
    tok: makes the text rows.
    cfg: batch size, seed, captions of each visual, augmentation, threads.
    start: the first step, which is the whole state of the data.
    rows: which rows of the global batch this process makes, in runs; None =
      all. Rows of clusters follow in proportion.
    clusters: if given, batches are DistillBatch, with `cfg.distill.clusters`
      clusters a step: G visuals, and one caption of each of G text rows.

  Raises:
    ValueError: a visual without captions, or arguments that do not fit.
  """
  size = cfg.train.batch_size
  runs = [_rows(r, size) for r in (rows or (slice(0, size),))]
  if start < 0:
    raise ValueError(f"start: must be >= 0; got {start}. name a step")
  captions = _captions(source, tok)
  _require_captions(source, captions, np.arange(len(source)))
  make = functools.partial(_pairs, source, captions, cfg)

  def step(t: int) -> types.Batch:
    return _together([make(t * size + r.start, r.stop - r.start) for r in runs])

  steps = range(start, sys.maxsize)
  if clusters is None:
    return _prefetched(step, steps, cfg.data.threads)

  width = clusters.visual.shape[-1]
  _check_clusters(clusters, source)
  _require_captions(source, captions, np.unique(clusters.text))
  judged = cfg.distill.clusters * width
  listed = [
    (
      order.proportion(r.start, size, judged),
      order.proportion(r.stop, size, judged),
    )
    for r in runs
  ]
  said = None
  if clusters.judged is not None:
    said = _picked(captions, cfg, clusters.text.ravel(), 0)

  def distil_step(t: int) -> types.DistillBatch:
    parts = [
      _clustered(
        clusters,
        captions,
        cfg,
        said,
        np.arange(t * judged + first, t * judged + last),
      )
      for first, last in listed
    ]
    return types.DistillBatch(step(t), *_together(parts))

  return _prefetched(distil_step, steps, cfg.data.threads)


def _together(parts: list[Any]) -> Any:
  """Runs of rows, one after the other, as one batch."""
  if len(parts) == 1:
    return parts[0]
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def cluster_texts(
  source: sources.Source,
  tok: tokenizer.Tokenizer,
  cfg: config.Config,
  clusters: Clusters,
) -> np.ndarray:
  """The caption that `train_batches` gives each place: int32 [n,G,L].

  An offline teacher judges it once, so it stays the same in every epoch.
  """
  _check_clusters(clusters, source)
  captions = _captions(source, tok)
  _require_captions(source, captions, np.unique(clusters.text))
  said = _picked(captions, cfg, clusters.text.ravel(), 0)
  return captions.tokens[said].reshape(*clusters.text.shape, -1)


def eval_batches(
  source: sources.Source,
  tok: tokenizer.Tokenizer,
  cfg: config.Config,
  batch_size: int,
  captions: bool = True,
  rows: slice | None = None,
) -> Iterator[types.Batch]:
  """Every example once, in order; the last batch is padded and masked.

  Text rows are the first M captions of each visual, or with `captions=False`
  one row of padding each, for visuals that may have none. Padding rows have
  visual 0, text of padding and ids -1. `rows` as in `train_batches`.
  """
  rows = _rows(rows, batch_size)
  per_visual = cfg.data.captions_per_visual
  texts = None
  if captions:
    texts = _captions(source, tok)
    _require_captions(source, texts, np.arange(len(source)))

  def step(t: int) -> types.Batch:
    numbers = np.arange(rows.start, rows.stop) + t * batch_size
    mask = numbers < len(source)
    present = numbers[mask]
    visual = _resized(source.visuals(present), cfg.data)
    if texts is None:
      text_id = np.full(len(present), -1, np.int32)
      text = np.full((len(present), tok.length), tok.pad, np.int32)
      m = 1
    else:
      m = per_visual
      places = np.arange(m) % texts.counts[present][:, None]
      text_id = texts.pick(present, places)
      text = texts.tokens[text_id]
    return types.Batch(
      visual=_padded(visual, len(numbers), 0),
      text=_padded(text, len(numbers) * m, tok.pad),
      visual_id=_padded(present.astype(np.int32), len(numbers), -1),
      text_id=_padded(text_id, len(numbers) * m, -1),
      mask=mask,
    )

  steps = range(math.ceil(len(source) / batch_size))
  return _prefetched(step, steps, cfg.data.threads)


def caption_table(
  source: sources.Source, tok: tokenizer.Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
  """All captions, in order: text int32 [n,L], visual row int32 [n] of each."""
  captions = _captions(source, tok)
  visual_row = np.repeat(
    np.arange(len(source), dtype=np.int32), captions.counts
  )
  return captions.tokens[captions.text_id], visual_row


class _Captions(NamedTuple):
  """The captions of a source, tokenised once; equal strings share an id."""

  tokens: np.ndarray  # int32 [U,L], by text_id
  text_id: np.ndarray  # int32 [n], of all captions in order
  first: np.ndarray  # int64 [N], of each visual's captions
  counts: np.ndarray  # int64 [N]

  def pick(self, visuals: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Captions at `places` int [n,M] of n visuals -> text_id int32 [n*M]."""
    return self.text_id[(self.first[visuals][:, None] + places).ravel()]


def _captions(source: sources.Source, tok: tokenizer.Tokenizer) -> _Captions:
  ids: dict[str, int] = {}
  text_id = [
    ids.setdefault(tok.normalise(caption), len(ids))
    for captions in source.all_captions
    for caption in captions
  ]
  counts = np.array([len(c) for c in source.all_captions], np.int64)
  return _Captions(
    tokens=tok.encode(list(ids)),
    text_id=np.array(text_id, np.int32),
    first=np.cumsum(counts) - counts,
    counts=counts,
  )


def _pairs(
  source: sources.Source,
  captions: _Captions,
  cfg: config.Config,
  first: int,
  count: int,
) -> types.Batch:
  """Examples number first .. first + count - 1 of training."""
  visual_id = order.shuffle(cfg.seed, _SHUFFLE, first, count, len(source))
  chosen = order.choose(
    (cfg.seed, _CAPTION),
    first,
    captions.counts[visual_id],
    cfg.data.captions_per_visual,
    int(captions.counts.max()),
  )
  text_id = captions.pick(visual_id, chosen)
  return types.Batch(
    visual=_seen(source, visual_id, cfg, _CROP, first),
    text=captions.tokens[text_id],
    visual_id=visual_id.astype(np.int32),
    text_id=text_id,
    mask=np.ones(count, bool),
  )


def _clustered(
  clusters: Clusters,
  captions: _Captions,
  cfg: config.Config,
  said: np.ndarray | None,
  numbers: np.ndarray,
) -> tuple[types.Batch, np.ndarray | None]:
  """Consecutive rows of the shuffled, repeated clusters, and their judgement.

  `said` is the text_id of each row of all clusters, where it never changes.
  """
  n, width = clusters.visual.shape
  cluster, column = np.divmod(numbers, width)
  low, high = int(cluster[0]), int(cluster[-1])
  chosen = order.shuffle(cfg.seed, _SHUFFLE + _CLUSTERS, low, high - low + 1, n)
  chosen = chosen[cluster - low]
  visual_id = clusters.visual[chosen, column]
  first = int(numbers[0])
  if said is None:
    text_id = _picked(captions, cfg, clusters.text[chosen, column], first)
  else:
    text_id = said[chosen * width + column]
  made = types.Batch(
    visual=_seen(clusters.source, visual_id, cfg, _CROP + _CLUSTERS, first),
    text=captions.tokens[text_id],
    visual_id=visual_id.astype(np.int32),
    text_id=text_id,
    mask=np.ones(len(numbers), bool),
  )
  if clusters.judged is None:
    return made, None
  return made, clusters.judged[chosen, column]


def _picked(
  captions: _Captions, cfg: config.Config, visuals: np.ndarray, first: int
) -> np.ndarray:
  """One caption of each captioned visual: text_id, by the number of its row."""
  chosen = order.choose(
    (cfg.seed, _CAPTION + _CLUSTERS),
    first,
    captions.counts[visuals],
    1,
    int(captions.counts.max()),
  )
  return captions.pick(visuals, chosen)


def _seen(
  source: sources.Source,
  rows: np.ndarray,
  cfg: config.Config,
  stream: int,
  first: int,
) -> np.ndarray:
  """Frames of the rows, augmented: uint8 [B,T,H,W,3]."""
  frames = source.visuals(rows)
  size = cfg.data.image_size
  match cfg.data.augment:
    case "none":
      return frames
    case "crop":
      cropped = np.empty((*frames.shape[:2], size, size, 3), np.uint8)
      for k in range(len(rows)):
        generator = np.random.Generator(
          order.philox((cfg.seed, stream), (first + k) << 64)
        )
        cropped[k] = transforms.random_crop(frames[k], size, generator)
      return cropped
    case "shift":
      most = transforms.most_shift(*frames.shape[2:4])
      drawn = order.philox((cfg.seed, stream), first).random_raw(4 * len(rows))
      moves = drawn.reshape(-1, 4)[:, :2] % (2 * most + 1)
      shifted = np.empty_like(frames)
      for k, (down, right) in enumerate(moves.astype(int) - most):
        shifted[k] = transforms.shift(frames[k], down, right)
      return shifted


def _resized(frames: np.ndarray, cfg: config.Data) -> np.ndarray:
  """Frames [B,T,H,W,3] as evaluation sees them: larger ones were for crops."""
  size = cfg.image_size
  if frames.shape[2:4] == (size, size):
    return frames
  flat = frames.reshape(-1, *frames.shape[2:])
  flat = np.stack([transforms.resize(f, size, cfg.resize) for f in flat])
  return flat.reshape(*frames.shape[:2], size, size, 3)


def _prefetched(
  step: Callable[[int], Any], steps: range, threads: int
) -> Iterator[Any]:
  """Results of the steps, in order, made ahead of their use by threads."""
  # One spare batch, so that a thread starts the next while one is consumed.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=threads + 1
  )
  numbers = grain.MapDataset.range(steps.start, steps.stop)
  return iter(numbers.map(step).to_iter_dataset(options))


def _padded(array: np.ndarray, length: int, value: int) -> np.ndarray:
  if len(array) == length:
    return array
  padded = np.full((length, *array.shape[1:]), value, array.dtype)
  padded[: len(array)] = array
  return padded


def _rows(rows: slice | None, size: int) -> slice:
  rows = slice(0, size) if rows is None else rows
  if rows.step not in (None, 1) or not 0 <= rows.start < rows.stop <= size:
    raise ValueError(
      f"rows: must be a contiguous part of the {size} rows of a batch; got "
      f"{rows}. pass slice(first, last)"
    )
  return rows


def _require_captions(
  source: sources.Source, captions: _Captions, rows: np.ndarray
) -> None:
  bare = rows[captions.counts[rows] == 0]
  if len(bare):
    raise ValueError(
      f"captions: every visual of this use needs one; got none for "
      f"{source.ids[bare[0]]!r} and {len(bare) - 1} more. use a split with "
      "captions"
    )


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
