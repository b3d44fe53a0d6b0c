"""Examples by number: what a split holds, captions apart from pictures.

A source is random access: a picture is decoded when asked for, or, with
`cfg.cache == "ram"`, once for all. Order, batches and randomness are the
pipeline's.
"""

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.progress
from etils import epath

from fs_jax import config
from fs_jax.data import transforms

Progress = Callable[[int, int], None]  # pictures decoded, of how many

# A random crop takes at least half of a frame: kept this much larger, frames
# are never enlarged by it.
_MARGIN = 1 / math.sqrt(transforms.CROP_AREA[0])
_FOLDERS = ("images", "videos", ".")  # of pictures, beside <split>.jsonl


class Example(NamedTuple):
  """One visual and all that is said about it."""

  id: str
  frames: np.ndarray  # uint8 [T,H,W,3]
  captions: tuple[str, ...]
  group: int  # examples that show the same; -1 = none


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """N examples; everything but the pixels is in memory."""

  ids: tuple[str, ...]  # unique
  all_captions: tuple[tuple[str, ...], ...]
  groups: np.ndarray  # int32 [N]
  # int [n] rows -> uint8 [n,T,H,W,3]; called from several threads at once
  visuals: Callable[[Sequence[int] | np.ndarray], np.ndarray]
  attribution: str = ""  # who made the pictures, under what licence
  all_objects: tuple[Any, ...] | None = None  # of datasets that know them

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
      records = _folder(cfg, split)
    case "scenes" | "emoji":
      records = _tfds(cfg, split)
  if not records.ids:
    raise ValueError(
      f"split {split!r} of {cfg.dataset!r}: must hold examples; got none. "
      "name another split"
    )

  def read(i: int) -> np.ndarray:
    frames = records.frames(i)
    frames = np.stack([transforms.resize(f, size, cfg.resize) for f in frames])
    return np.repeat(frames, cfg.frames, 0) if len(frames) == 1 else frames

  shape = (cfg.frames, size, size, 3)
  if cfg.cache == "ram":
    visuals = _cached(read, (len(records.ids), *shape), cfg.threads, progress)
  else:
    visuals = _uncached(read, shape)
  return Source(
    ids=tuple(records.ids),
    all_captions=tuple(records.captions),
    groups=np.asarray(records.groups, np.int32),
    visuals=visuals,
    attribution=records.attribution,
    all_objects=records.objects,
  )


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
  )


class _Records(NamedTuple):
  """A split as it is on disk."""

  ids: Sequence[str]
  captions: Sequence[tuple[str, ...]]
  groups: Sequence[int]
  frames: Callable[[int], np.ndarray]  # i -> uint8 [1 or T,h,w,3], as stored
  attribution: str
  objects: tuple[Any, ...] | None


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


def _tfds(cfg: config.Data, split: str) -> _Records:
  """A generated dataset, made first where it is not there yet."""
  # Here, because it imports all of TFDS, which a folder does without.
  import tensorflow_datasets as tfds

  from fs_jax.data import prepare

  builder = prepare.prepare(
    cfg.dataset, cfg.dir, seed=cfg.seed, **dict(cfg.sizes)
  )
  splits = sorted(builder.info.splits)
  if split not in splits:
    raise ValueError(
      f"split of {cfg.dataset!r}: must be one of {splits}; got {split!r}. "
      "name one of them"
    )
  records = builder.as_data_source(
    split, decoders={"image": tfds.decode.SkipDecoding()}
  )
  ids, captions, groups, objects = [], [], [], []
  pictures = []  # encoded, kept only while all of them are decoded
  for start in range(0, len(records), 1000):
    rows = range(start, min(start + 1000, len(records)))
    for record in records.__getitems__(list(rows)):
      ids.append(_text(record["id"]))
      captions.append(tuple(_text(c) for c in record["captions"]))
      groups.append(int(record.get("group", -1)))
      if "objects" in record:
        objects.append(record["objects"])
      if cfg.cache == "ram":
        pictures.append(record["image"])

  def frames(i: int) -> np.ndarray:
    data = pictures[i] if pictures else records[i]["image"]
    return transforms.decode(data, f"{split} {ids[i]}")[None]

  return _Records(
    ids=ids,
    captions=captions,
    groups=groups,
    frames=frames,
    attribution=(builder.info.metadata or {}).get("attribution", ""),
    objects=tuple(objects) if len(objects) == len(ids) else None,
  )


def _text(value: str | bytes) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


class _Line(NamedTuple):
  """One line of <split>.jsonl."""

  where: str  # file and line, for errors
  name: str  # of the picture, as written: its id
  video: bool
  path: epath.Path
  captions: tuple[str, ...]
  group: int


def _folder(cfg: config.Data, split: str) -> _Records:
  """Pictures with <split>.jsonl beside them.

  A line is {"image" or "video": name, "captions": [...], "group": 3}; pictures
  are in images/, videos/ or the root. A split without any caption is fine for
  what needs none, such as a gallery.
  """
  root = epath.Path(cfg.dir)
  if not root.is_dir():
    raise ValueError(
      f"data.dir: must be a folder; got {cfg.dir!r}, which is none. check the "
      "path"
    )
  file = root / f"{split}.jsonl"
  if not file.exists():
    found = sorted(p.stem for p in root.iterdir() if p.suffix == ".jsonl")
    raise ValueError(
      f"split: {cfg.dir!r} must hold a <split>.jsonl; got {split!r}, it has "
      f"{found}. name one of them"
    )
  lines = [
    _parse(text, f"{file}:{number}", root)
    for number, text in enumerate(file.read_text().split("\n"), start=1)
    if text.strip()
  ]
  captioned = split in (cfg.train, cfg.validation)
  if captioned or any(line.captions for line in lines):
    for line in lines:
      if not line.captions:
        raise ValueError(
          f"{line.where}: must have captions; got none for {line.name!r}. "
          'write "captions": ["..."]'
        )

  def frames(i: int) -> np.ndarray:
    line = lines[i]
    source = f"{line.where}: {line.path}"
    data = line.path.read_bytes()
    if line.video:
      return transforms.decode_video(data, cfg.frames, source)
    return transforms.decode(data, source)[None]

  credit = root / "ATTRIBUTION"
  return _Records(
    ids=[line.name for line in lines],
    captions=[line.captions for line in lines],
    groups=[line.group for line in lines],
    frames=frames,
    attribution=credit.read_text().strip() if credit.exists() else "",
    objects=None,
  )


def _parse(text: str, where: str, root: epath.Path) -> _Line:
  try:
    record = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(
      f"{where}: must be a line of JSON; got {text[:80]!r} ({error}). fix the "
      "line"
    ) from None
  keys = ("image", "video")
  named = [k for k in keys if isinstance(record, dict) and k in record]
  if len(named) != 1 or not isinstance(record[named[0]], str):
    raise ValueError(
      f'{where}: must name one "image" or one "video"; got {text[:80]!r}. fix '
      "the line"
    )
  name = record[named[0]]
  captions = record.get("captions", [])
  if not isinstance(captions, list) or not all(
    isinstance(caption, str) and caption.strip() for caption in captions
  ):
    raise ValueError(
      f"{where}: captions must be a list of strings, none of them empty; got "
      f"{captions!r}. fix the line"
    )
  group = record.get("group", -1)
  if isinstance(group, bool) or not isinstance(group, int):
    raise ValueError(
      f"{where}: group must be an integer; got {group!r}. fix the line"
    )
  for folder in _FOLDERS:
    path = root / folder / name
    if path.exists():
      return _Line(
        where, name, named[0] == "video", path, tuple(captions), group
      )
  raise ValueError(
    f"{where}: its {named[0]} must be in one of {list(_FOLDERS)} of {root}; "
    f"got {name!r}, which is in none. add the file or remove the line"
  )
