"""Loads the parts of a gallery and checks that they belong together.

Models, index, items, memories and weights each carry a contract. Here they are
compared, and whatever does not fit is refused with the command that makes it
anew.
"""

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from fs_jax.data import sources
from fs_jax.gallery import encode, exact, index, items, memories
from fs_jax.machine import commands, provenance
from fs_jax.runs import layout, stages
from fs_jax.search import fusion, packed

Pictures = Callable[[Sequence[int]], list[np.ndarray]]


class Judge(NamedTuple):
  """Slow, and what it needs to re-rank a gallery."""

  run: stages.Run
  memories: memories.Memories  # what Slow stored of each visual
  weights: fusion.Weights  # how Slow weighs beside the gallery's Fast


@dataclasses.dataclass(frozen=True)
class Gallery:
  """A gallery and the models that search it."""

  fast: stages.Run  # the stage whose vectors the index holds
  index: exact.Index
  items: items.Items  # in the order of the index
  judge: Judge | None = None  # None for Fast alone
  # rows -> frames uint8 [T,H,W,3] of each; None if there is nothing to show
  pictures: Pictures | None = None


def load_workdir(workdir: epath.Path, split: str, slow: bool) -> Gallery:
  """Loads a split's gallery for the best Fast of a workdir.

  Args:
    workdir: the folder of stages and galleries.
    split: the split that is searched.
    slow: whether to load Slow too.

  Raises:
    ValueError: a part is missing or does not fit the others.
  """
  name = layout.best_fast(workdir)
  if name is None:
    raise ValueError(
      f"{workdir}: must hold a trained fast or distill; got neither. train "
      f"one: {commands.program('train')}, or {commands.program('quickstart')}"
    )
  folders = layout.gallery(workdir, split)
  again = _remake_command(workdir, split)
  if not folders.index.exists():
    raise ValueError(
      f"{workdir}: must hold an index of split {split!r}; got none. make it: "
      f"{again}"
    )
  fast = stages.load(layout.stage(workdir, name))
  source = sources.open_lazily(fast.cfg.data, split)
  made_from = encode.make_contract(fast, source)
  judge = None
  if slow:
    folder = layout.stage(workdir, layout.SLOW)
    if not stages.is_finished(folder):
      raise ValueError(
        f"{folder}: must be trained to its end to re-rank; got none that is. "
        f"train it: {commands.program('train')}, or give --rerank=0"
      )
    judge = stages.load(folder)
  return load(
    fast,
    folders,
    made_from,
    captions=items.make_contract(source, made_from["split"])["captions"],
    root=fast.cfg.data.dir,
    judge=judge,
    pictures=lambda rows: list(source.visuals(rows)),
    mend=lambda _: f"make it anew: {again}",
  )


def load_packed(folder: epath.Path, split: str | None, slow: bool) -> Gallery:
  """Loads a packed gallery.

  Args:
    folder: the packed gallery.
    split: the split that it must hold; None for any.
    slow: whether to load Slow too.

  Raises:
    ValueError: a part is missing or does not fit the others; another split.
  """
  manifest = packed.read(folder)
  packed_split = manifest["contract"]["split"].get("split")
  if split is not None and split != packed_split:
    raise ValueError(
      f"split: must be {packed_split!r}, which {folder} holds; got {split!r}. "
      "leave it out, or open another gallery"
    )
  fast = stages.load(layout.stage(folder, "fast"))
  judge = None
  if slow:
    if not stages.is_finished(layout.stage(folder, layout.SLOW)):
      raise ValueError(
        f"{folder}: must hold Slow to re-rank; got a gallery that was packed "
        "without. pack it again with --slow, or give --rerank=0"
      )
    judge = stages.load(layout.stage(folder, layout.SLOW))
  parts = {p: manifest["contract"][p] for p in ("split", "items")}
  return load(
    fast,
    layout.Gallery(folder),
    {**fast.contract, **parts},
    captions=manifest["contract"]["captions"],
    judge=judge,
    weights_at=folder,
    mend=lambda _: packed.MEND,
  )


def load(
  fast: stages.Run,
  folders: layout.Gallery,
  made_from: provenance.Contract,
  *,
  captions: Mapping[str, object] | None = None,
  root: str = "",
  judge: stages.Run | None = None,
  weights_at: epath.Path | None = None,
  memories_at: epath.Path | None = None,
  pictures: Pictures | None = None,
  mend: Callable[[epath.Path], str],
) -> Gallery:
  """Loads a gallery from its folders, for the stages that made them.

  `load_workdir` and `load_packed` call it for folders with the usual layout,
  studies for others.

  Args:
    fast: the stage whose vectors the index holds.
    folders: the gallery's folders.
    made_from: the contract that the index must have.
    captions: the part `captions` that the items must have as well, if known.
    root: the data's folder, for the items' paths.
    judge: the stage that re-ranks; None for Fast alone.
    weights_at: the folder of the weights, if not the stage trained last.
    memories_at: the folder of the memories, if not beside the index.
    pictures: as in Gallery; None shows the items' thumbnails.
    mend: folder -> the fix that errors suggest for it.

  Raises:
    ValueError: a folder that is damaged or has another contract.
  """
  loaded = index.load(
    folders.index,
    made_from,
    vectors=folders.vectors if folders.vectors.exists() else None,
    mend=mend(folders.index),
  )
  visuals = {p: made_from[p] for p in ("split", "items")}
  listed = items.Items(
    folders.items,
    visuals | ({"captions": captions} if captions else {}),
    root=root,
    mend=mend(folders.items),
  )
  slow = None
  if judge is not None:
    folder = memories_at or folders.memories
    store = memories.Memories(
      folder,
      {**judge.contract, "split": made_from["split"]},
      ids=loaded.ids,
      hashes=False,
      mend=mend(folder),
    )
    last = judge if fast.cfg.stage == "fast" else fast
    weights = fusion.load(
      weights_at or last.folder,
      {**fast.contract, **judge.contract},
      mend=mend(weights_at) if weights_at else "",
    )
    slow = Judge(judge, store, weights)
  if pictures is None and len(listed) and listed.thumbnail(0):
    pictures = lambda rows: [_decode(listed.thumbnail(int(r))) for r in rows]
  return Gallery(fast, loaded, listed, slow, pictures)


def _decode(picture: bytes | None) -> np.ndarray:
  """Decodes a thumbnail that `packed` wrote: uint8 [1,H,W,3]."""
  with Image.open(io.BytesIO(picture or b""), formats=packed.FORMATS) as image:
    return np.asarray(image.convert("RGB"))[None]


def _remake_command(workdir: epath.Path, split: str) -> str:
  """The command that encodes and indexes a split for a workdir's best Fast.

  It encodes memories too if Slow is trained.
  """
  run = layout.stage(workdir, layout.best_fast(workdir) or "fast")
  slow = layout.stage(workdir, layout.SLOW)
  judge = [f"--slow={slow}"] if stages.is_finished(slow) else []
  encode = commands.command(
    "encode", f"--run={run}", *judge, f"--split={split}", "--replace"
  )
  folder = layout.gallery(workdir, split).folder
  build = commands.command(
    "export_index", f"--gallery={folder}", f"--run={run}", "--replace"
  )
  return f"{encode} && {build}"
