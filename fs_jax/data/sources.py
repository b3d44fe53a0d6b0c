"""Examples by number: the captions and pictures of a split.

A source is random access: a picture is decoded when it is asked for, or once
for all with `cfg.cache == "ram"`. Order, batches and randomness are left to
`order` and `pipeline`.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from fs_jax import config
from fs_jax.data import records, transforms
from fs_jax.machine import console

Progress = Callable[[int, int], None]  # (pictures decoded, pictures in all)

_PATIENCE = 5.0  # seconds of decoding before progress is shown
# A random crop takes at least half of a frame: frames that are stored this much
# larger are never enlarged by it.
_MARGIN = 1 / math.sqrt(transforms.CROP_AREA[0])


class Example(NamedTuple):
  """One visual, its captions and its group."""

  id: str
  frames: np.ndarray  # uint8 [T,H,W,3]
  captions: tuple[str, ...]
  group: int  # shared by examples that show the same; -1 = none


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """N examples; everything but the pixels is in memory.

  `origin` tells apart data that may share ids: dataset, split, and what a
  generated one was drawn from. `contents` is a digest of files that may change
  under their names.
  """

  ids: tuple[str, ...]  # unique
  all_captions: tuple[tuple[str, ...], ...]
  groups: np.ndarray  # int32 [N]
  # rows int [n] -> uint8 [n,T,H,W,3]; called from several threads at once
  visuals: Callable[[Sequence[int] | np.ndarray], np.ndarray]
  attribution: str = ""  # who made the pictures, under what licence
  all_objects: tuple[Any, ...] | None = None  # if the dataset records them
  origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  contents: Callable[[], str] = str  # SHA-256; reads the files the first time
  # Each visual's file, below data.dir; () if it has none of its own.
  paths: tuple[str, ...] = ()
  # row -> uint8 [T,h,w,3] as stored, for people; None = use `visuals`
  original: Callable[[int], np.ndarray] | None = None

  def __post_init__(self) -> None:
    counts = collections.Counter(self.ids)
    repeated = [name for name in self.ids if counts[name] > 1]
    if repeated:
      raise ValueError(
        f"ids: must be unique in a split; got {repeated[0]!r} "
        f"{counts[repeated[0]]} times. rename or remove all but one"
      )

  def __len__(self) -> int:
    return len(self.ids)

  def __getitem__(self, i: int) -> Example:
    i = range(len(self))[i]
    frames = self.visuals([i])[0]
    return Example(self.ids[i], frames, self.captions(i), self.group(i))

  def __iter__(self) -> Iterator[Example]:
    return (self[i] for i in range(len(self)))

  def captions(self, i: int) -> tuple[str, ...]:
    return self.all_captions[i]

  def group(self, i: int) -> int:
    return int(self.groups[i])

  def objects(self, i: int) -> Any:
    """The objects that example i shows, as the dataset records them.

    Raises:
      ValueError: the dataset does not record them.
    """
    if self.all_objects is None:
      raise ValueError(
        "objects: the dataset must record them; got one that does not. "
        "use dataset 'scenes'"
      )
    return self.all_objects[i]


def open_split(
  cfg: config.Data,
  split: str,
  *,
  train: bool = False,
  progress: Progress | None = None,
) -> Source:
  """Opens a split; its frames are resized to `cfg.image_size`.

  Args:
    cfg: the dataset, and what is done to its pictures.
    split: a name, such as `cfg.train`.
    train: whether frames are for training: they stay larger if `cfg.augment`
      crops, so that a crop is never enlarged.
    progress: called while pictures are decoded into memory; None = show a bar
      on a terminal.

  Raises:
    ValueError: no such dataset or split, or a bad line, picture or caption,
      by file and line.
  """
  cropped = train and cfg.augment == "crop"
  size = math.ceil(cfg.image_size * _MARGIN) if cropped else cfg.image_size
  match cfg.dataset:
    case "folder":
      stored = records.read_folder(cfg, split)
    case "scenes" | "emoji":
      stored = records.read_generated(cfg, split)
    case _:
      raise ValueError(
        f"data.dataset: {cfg.dataset!r} is planned and cannot be read yet; got "
        "it for a run. put its files in a folder and set "
        "--config.data.dataset=folder --config.data.dir=..."
      )
  if not stored.ids:
    raise ValueError(
      f"split {split!r} of {cfg.dataset!r}: must hold examples; got none. "
      "use a split that has some"
    )

  def read(i: int) -> np.ndarray:
    frames = stored.frames(i)
    frames = np.stack([transforms.resize(f, size, cfg.resize) for f in frames])
    return np.repeat(frames, cfg.frames, 0) if len(frames) == 1 else frames

  shape = (cfg.frames, size, size, 3)
  if cfg.cache == "ram":
    visuals = _cached(read, (len(stored.ids), *shape), cfg.threads, progress)
  else:
    visuals = _uncached(read, shape)
  return Source(
    ids=tuple(stored.ids),
    all_captions=tuple(stored.captions),
    groups=np.asarray(stored.groups, np.int32),
    visuals=visuals,
    attribution=stored.attribution,
    all_objects=stored.objects,
    origin={"dataset": cfg.dataset, "split": split, **stored.origin},
    contents=stored.contents,
    paths=tuple(stored.paths),
    original=stored.frames,
  )


def open_lazily(cfg: config.Data, split: str) -> Source:
  """Opens a split whose pictures are decoded one by one, as they are asked for.

  For captions alone, or for a few pictures to look at.
  """
  return open_split(dataclasses.replace(cfg, cache="none"), split)


def join(*parts: Source) -> Source:
  """Joins sources in order, such as captioned pictures and then others.

  Raises:
    ValueError: an id of one is an id of another.
  """
  ends = list(itertools.accumulate(len(part) for part in parts))
  starts = [0, *ends[:-1]]

  def visuals(rows: Sequence[int] | np.ndarray) -> np.ndarray:
    rows = np.asarray(rows)
    owners = np.searchsorted(ends, rows, side="right")
    gathered: np.ndarray | None = None
    for k in np.unique(owners):
      places = np.flatnonzero(owners == k)
      frames = parts[k].visuals(rows[places] - starts[k])
      if len(places) == len(rows):
        return frames
      if gathered is None:
        gathered = np.empty((len(rows), *frames.shape[1:]), np.uint8)
      gathered[places] = frames
    return parts[0].visuals([]) if gathered is None else gathered

  objects = None
  if all(part.all_objects is not None for part in parts):
    objects = tuple(itertools.chain(*(p.all_objects or () for p in parts)))
  credits = dict.fromkeys(part.attribution for part in parts)
  return Source(
    ids=tuple(itertools.chain(*(part.ids for part in parts))),
    all_captions=tuple(itertools.chain(*(p.all_captions for p in parts))),
    groups=np.concatenate([part.groups for part in parts]),
    visuals=visuals,
    attribution="\n".join(filter(None, credits)),
    all_objects=objects,
    origin={
      name: " + ".join(dict.fromkeys(str(p.origin.get(name)) for p in parts))
      for name in dict.fromkeys(itertools.chain(*(p.origin for p in parts)))
    },
    contents=lambda: " + ".join(filter(None, (p.contents() for p in parts))),
    paths=tuple(itertools.chain(*(p.paths or ("",) * len(p) for p in parts))),
  )


def take(source: Source, rows: np.ndarray) -> Source:
  """Takes some examples of a source, in the order of `rows`."""
  objects, original = source.all_objects, source.original
  if objects is not None:
    objects = tuple(objects[i] for i in rows)
  take_original = None
  if original is not None:
    take_original = lambda i: original(int(rows[i]))
  paths = tuple(source.paths[i] for i in rows) if source.paths else ()
  return dataclasses.replace(
    source,
    ids=tuple(source.ids[i] for i in rows),
    all_captions=tuple(source.all_captions[i] for i in rows),
    groups=np.asarray(source.groups)[rows],
    visuals=lambda some: source.visuals(rows[np.asarray(some, int)]),
    all_objects=objects,
    paths=paths,
    original=take_original,
  )


def _uncached(
  read: Callable[[int], np.ndarray], shape: tuple[int, ...]
) -> Callable[[Sequence[int] | np.ndarray], np.ndarray]:
  def visuals(rows: Sequence[int] | np.ndarray) -> np.ndarray:
    frames = np.empty((len(rows), *shape), np.uint8)
    for frame, row in zip(frames, rows, strict=True):
      frame[:] = read(int(row))
    return frames

  return visuals


def _cached(
  read: Callable[[int], np.ndarray],
  shape: tuple[int, ...],
  threads: int,
  progress: Progress | None,
) -> Callable[[Sequence[int] | np.ndarray], np.ndarray]:
  """Decodes all into uint8 [N,T,H,W,3], served as `Source.visuals`."""
  frames = np.empty(shape, np.uint8)

  def fill(i: int) -> None:
    frames[i] = read(i)

  pool = futures.ThreadPoolExecutor(threads)
  try:
    with console.Bar("decoding", len(frames), patience=_PATIENCE) as bar:
      decoded = pool.map(fill, range(len(frames)))
      for count, _ in enumerate(decoded, start=1):
        if progress is None:
          bar.advance(count)
        else:
          progress(count, len(frames))
  finally:
    pool.shutdown(cancel_futures=True)
  frames.flags.writeable = False  # shared by every batch
  return lambda rows: frames[np.asarray(rows, np.int64)]
