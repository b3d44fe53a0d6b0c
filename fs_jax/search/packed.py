"""A gallery that travels: all that a Searcher needs, and no training data.

G/  manifest.json  items/ vectors/ memories/ index/
    fast/ slow/    config, tokenizer and the parameters that read a text
    fit.json       how Slow and Fast weigh
    ATTRIBUTION    of the pictures, whose licence goes with them
"""

import io
import os
import shutil
from typing import Any

from etils import epath
from PIL import Image

from fs_jax.data import sources
from fs_jax.gallery import items
from fs_jax.machine import files
from fs_jax.machine import manifest as manifests
from fs_jax.runs import layout, stages
from fs_jax.search import fusion

KIND = "gallery"
MEND = "copy the whole folder again from where it was packed"
FORMATS = ("WEBP",)
SIDE = 256  # pixels of a thumbnail's longer side, at most
# Parameters that reading a query needs; pixels are not seen any more.
_TEXT = ("fast/text_", "fast/log_scale", "fast/bias")
_PIXELS = ("slow/encoder/",)
_NOT_HERE = ("vectors", "memories", "index", "items")


def is_packed(folder: epath.PathLike) -> bool:
  """Whether a folder is a packed gallery, whole or not."""
  folder = epath.Path(folder)
  part = layout.stage(folder, "fast") / layout.PART
  return (folder / manifests.MANIFEST).exists() or part.exists()


def read(folder: epath.PathLike) -> dict[str, Any]:
  """The manifest of a whole gallery.

  Items and index are compared by content where they are opened, vectors and
  memories, which may be large, by size alone, and all other files here.

  Raises:
    FileNotFoundError: the manifest is missing.
    ValueError: damaged, or no packed gallery.
  """
  manifest = manifests.read_manifest(folder, KIND, hashes=False, mend=MEND)
  for name, listed in manifest["files"].items():
    if name.split("/")[0] not in _NOT_HERE and (
      files.sha256(epath.Path(folder) / name) != listed["sha256"]
    ):
      raise ValueError(
        f"{folder}: {name!r} must be as it was packed; got other contents. "
        f"{MEND}"
      )
  return manifest


def write(
  folder: epath.PathLike,
  where: layout.Gallery,
  source: sources.Source,
  fast: stages.Run,
  slow: stages.Run | None = None,
) -> dict[str, Any]:
  """Packs a gallery; returns the manifest that it wrote.

  Args:
    folder: to make, or to replace where it is a packed gallery.
    where: the gallery: items, vectors, index and, with `slow`, memories.
    source: its visuals, of which thumbnails are made.
    fast: whose vectors it holds.
    slow: whose memories it holds; None packs Fast alone.

  Raises:
    ValueError: `folder` is something else.
    errors.DiskFull: no space is left.
  """
  if slow is not None:  # before anything is copied
    last = fast if fast.cfg.stage == "distill" else slow
    fusion.load(last.folder, {**fast.contract, **slow.contract})
  shown = items.Items(where.items)
  index = manifests.read_manifest(where.index, "index", hashes=False)
  parts = {**index["contract"], "captions": shown.contract["captions"]}
  with manifests.folder(folder, KIND) as temporary:
    copied = ["vectors", "index"] + ["memories"] * (slow is not None)
    for name in copied:
      shutil.copytree(
        os.fspath(manifests.local_copy(getattr(where, name))),
        os.fspath(temporary / name),
      )
    items.write(
      temporary / "items",
      source,
      shown.contract,
      thumbnail=lambda row: _thumbnail(source, row),
    )
    stages.save_part(temporary / "fast", fast, _reads_text)
    if slow is not None:
      stages.save_part(temporary / layout.SLOW, slow, _reads_memories)
      (last.folder / layout.WEIGHTS).copy(temporary / layout.WEIGHTS)
      parts |= slow.contract
    files.write_text(temporary / "ATTRIBUTION", source.attribution + "\n")
    return manifests.write_manifest(
      temporary,
      {"kind": KIND, "count": len(source), "contract": parts},
    )


def _reads_text(name: str) -> bool:
  return name.startswith(_TEXT)


def _reads_memories(name: str) -> bool:
  return not name.startswith(_PIXELS)


def _thumbnail(source: sources.Source, row: int) -> bytes:
  """The first frame as WebP, in its own proportions, no larger than SIDE."""
  if source.original is not None:
    frames = source.original(row)
  else:
    frames = source.visuals([row])[0]
  image = Image.fromarray(frames[0])
  image.thumbnail((SIDE, SIDE))
  encoded = io.BytesIO()
  image.save(encoded, "WEBP", quality=85)
  return encoded.getvalue()
