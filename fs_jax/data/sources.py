"""Examples by number: what a split holds, captions apart from pictures.

A source is random access: a picture is decoded when asked for, or, with
`cfg.cache == "ram"`, once for all. Order, batches and randomness are the
pipeline's.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.progress

from fs_jax import config
from fs_jax.data import records, transforms

Progress = Callable[[int, int], None]  # pictures decoded, of how many

# A random crop takes at least half of a frame: kept this much larger, frames
# are never enlarged by it.
_MARGIN = 1 / math.sqrt(transforms.CROP_AREA[0])


class Example(NamedTuple):
  """One visual and all that is said about it."""

  id: str
  frames: np.ndarray  # uint8 [T,H,W,3]
  captions: tuple[str, ...]
  group: int  # examples that show the same; -1 = none


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """N examples; everything but the pixels is in memory.

  `origin` says whose they are, where ids may be those of other data as well:
  dataset, split, and what a generated one was drawn from. `contents` says what
  the files hold, where they may change under their names.
  """

  ids: tuple[str, ...]  # unique
  all_captions: tuple[tuple[str, ...], ...]
  groups: np.ndarray  # int32 [N]
  # int [n] rows -> uint8 [n,T,H,W,3]; called from several threads at once
  visuals: Callable[[Sequence[int] | np.ndarray], np.ndarray]
  attribution: str = ""  # who made the pictures, under what licence
  all_objects: tuple[Any, ...] | None = None  # of datasets that know them
  origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  contents: Callable[[], str] = str  # SHA-256; reads the files the first time
  # Of each visual's file, below data.dir; () where it has none of its own.
  paths: tuple[str, ...] = ()
  # row -> uint8 [T,h,w,3] as it is stored, for people; `visuals` if None
  original: Callable[[int], np.ndarray] | None = None

  def __post_init__(self):
    counts = collections.Counter(self.ids)
    double = [name for name in self.ids if counts[name] > 1]
    if double:
      raise ValueError(
        f"ids: must be unique in a split; got {double[0]!r} "
        f"{counts[double[0]]} times. rename or remove it"
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
    """What example i shows, as the dataset records it.

    Raises:
      ValueError: the dataset does not know.
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
  """The examples of a split, frames resized to `cfg.image_size`.

  Args:
    cfg: the dataset, and what is done to its pictures.
    split: a name, such as `cfg.train`.
    train: frames are for training: kept larger where `cfg.augment` crops, so
      that a crop is no enlargement.
    progress: called while pictures are decoded into memory; None shows a bar
      on a terminal.

  Raises:
    ValueError: no such dataset or split, or a bad line, picture or caption,
      by file and line.
  """
  cropped = train and cfg.augment == "crop"
  size = math.ceil(cfg.image_size * _MARGIN) if cropped else cfg.image_size
  match cfg.dataset:
    case "folder":
      stored = records.folder(cfg, split)
    case "scenes" | "emoji":
      stored = records.generated(cfg, split)
    case _:
      raise ValueError(
        f"data.dataset: {cfg.dataset!r} is planned for, and cannot be read "
        "yet; got it for a run. put its files in a folder and set "
        "--config.data.dataset=folder --config.data.dir=..."
      )
  if not stored.ids:
    raise ValueError(
      f"split {split!r} of {cfg.dataset!r}: must hold examples; got none. "
      "name another split"
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
  """As `open_split`, whose pictures are decoded one by one as they are asked
  for: where captions are wanted, or a few pictures to look at.
  """
  return open_split(dataclasses.replace(cfg, cache="none"), split)


def join(*parts: Source) -> Source:
  """Sources one after the other, such as captioned pictures, then others.

  Raises:
    ValueError: an id of one is an id of another.
  """
  ends = list(itertools.accumulate(len(part) for part in parts))
  starts = [0, *ends[:-1]]

  def visuals(rows: Sequence[int] | np.ndarray) -> np.ndarray:
    rows = np.asarray(rows)
    of = np.searchsorted(ends, rows, side="right")
    gathered: np.ndarray | None = None
    for k in np.unique(of):
      at = np.flatnonzero(of == k)
      frames = parts[k].visuals(rows[at] - starts[k])
      if len(at) == len(rows):
        return frames
      if gathered is None:
        gathered = np.empty((len(rows), *frames.shape[1:]), np.uint8)
      gathered[at] = frames
    return parts[0].visuals([]) if gathered is None else gathered

  known = all(part.all_objects is not None for part in parts)
  credits = dict.fromkeys(part.attribution for part in parts)
  return Source(
    ids=tuple(itertools.chain(*(part.ids for part in parts))),
    all_captions=tuple(itertools.chain(*(p.all_captions for p in parts))),
    groups=np.concatenate([part.groups for part in parts]),
    visuals=visuals,
    attribution="\n".join(filter(None, credits)),
    all_objects=tuple(itertools.chain(*(p.all_objects or () for p in parts)))
    if known
    else None,
    origin={
      name: " + ".join(dict.fromkeys(str(p.origin.get(name)) for p in parts))
      for name in dict.fromkeys(itertools.chain(*(p.origin for p in parts)))
    },
    contents=lambda: " + ".join(filter(None, (p.contents() for p in parts))),
    paths=tuple(itertools.chain(*(p.paths or ("",) * len(p) for p in parts))),
  )


def take(source: Source, rows: np.ndarray) -> Source:
  """Some examples of a source, in the order of `rows`."""
  objects, original = source.all_objects, source.original
  return dataclasses.replace(
    source,
    ids=tuple(source.ids[i] for i in rows),
    all_captions=tuple(source.all_captions[i] for i in rows),
    groups=np.asarray(source.groups)[rows],
    visuals=lambda some: source.visuals(rows[np.asarray(some, int)]),
    all_objects=objects and tuple(objects[i] for i in rows),
    paths=source.paths and tuple(source.paths[i] for i in rows),
    original=original and (lambda i: original(int(rows[i]))),
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
  """Reads all; uint8 [N,T,H,W,3] behind the face of `Source.visuals`."""
  frames = np.empty(shape, np.uint8)

  def fill(i: int) -> None:
    frames[i] = read(i)

  console = rich.console.Console(stderr=True)
  hidden = progress is not None or not console.is_terminal
  pool = futures.ThreadPoolExecutor(threads)
  try:
    done = rich.progress.track(
      pool.map(fill, range(len(frames))),
      "decoding pictures",
      total=len(frames),
      console=console,
      disable=hidden,
      transient=True,
    )
    for count, _ in enumerate(done, start=1):
      if progress is not None:
        progress(count, len(frames))
  finally:
    pool.shutdown(cancel_futures=True)
  frames.flags.writeable = False  # shared by every batch
  return lambda rows: frames[np.asarray(rows, np.int64)]
