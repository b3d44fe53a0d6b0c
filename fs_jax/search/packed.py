"""A packed gallery: one folder with all that a search needs.

It can be copied to any machine and opened with `searcher.open`. It holds no
training data, only thumbnails and captions, and of the models only the
parameters that read a query.

G/  manifest.json  the files, their checksums, and what they were made from
    items/         captions, paths and thumbnails of the visuals
    vectors/       Fast's vectors of the visuals
    index/         the search index over these vectors
    memories/      what Slow reads of each visual (only with Slow)
    fast/ slow/    config, tokenizer and the parameters that read a text
    fit.json       the weights of Slow and Fast (only with Slow)
    ATTRIBUTION    the source of the pictures, whose licence goes with them
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

KIND = "gallery"  # the manifest's kind
MEND = "copy the whole folder again from where it was packed"
FORMATS = ("WEBP",)  # of thumbnails
SIDE = 256  # pixels of a thumbnail's longer side, at most
# Parameters that read a query; none of them sees pixels.
_TEXT = ("fast/text_", "fast/log_scale", "fast/bias")
_PIXELS = ("slow/encoder/",)
# Folders that check their own files when they are opened.
_SELF_CHECKED = ("vectors", "memories", "index", "items")


def is_packed(folder: epath.PathLike) -> bool:
  """Whether a folder is a packed gallery, complete or not."""
  folder = epath.Path(folder)
  part = layout.stage(folder, "fast") / layout.PART
  return (folder / manifests.MANIFEST).exists() or part.exists()


def read(folder: epath.PathLike) -> dict[str, Any]:
  """Checks a packed gallery and reads its manifest.

  All files are checked by size, and small ones by content: items and index when
  they are opened, all others here. Vectors and memories may be large, so only
  their sizes are checked.

  Raises:
    FileNotFoundError: the manifest is missing.
    ValueError: damaged, or not a packed gallery.
  """
  manifest = manifests.read_manifest(folder, KIND, hashes=False, mend=MEND)
  for name, listed in manifest["files"].items():
    if name.split("/")[0] not in _SELF_CHECKED and (
      files.sha256(epath.Path(folder) / name) != listed["sha256"]
    ):
      raise ValueError(
        f"{folder}: {name!r} must be as it was packed; got other contents. "
        f"{MEND}"
      )
  return manifest


def write(
  folder: epath.PathLike,
  gallery: layout.Gallery,
  source: sources.Source,
  fast: stages.Run,
  slow: stages.Run | None = None,
) -> dict[str, Any]:
  """Packs a gallery; returns the manifest that it wrote.

  Args:
    folder: the folder to make, or a packed gallery to replace.
    gallery: the gallery to pack: items, vectors, index and, with `slow`,
      memories.
    source: the gallery's visuals, for thumbnails.
    fast: the stage that made the vectors.
    slow: the stage that made the memories; None packs Fast alone.

  Raises:
    ValueError: `folder` is something else.
    errors.DiskFull: no space is left.
  """
  if slow is not None:  # before anything is copied
    last = fast if fast.cfg.stage == "distill" else slow
    fusion.load(last.folder, {**fast.contract, **slow.contract})
  listed = items.Items(gallery.items)
  index = manifests.read_manifest(gallery.index, "index", hashes=False)
  parts = {**index["contract"], "captions": listed.contract["captions"]}
  with manifests.folder(folder, KIND) as temporary:
    copied = layout.Gallery(temporary)
    pairs = [(gallery.vectors, copied.vectors), (gallery.index, copied.index)]
    if slow is not None:
      pairs.append((gallery.memories, copied.memories))
    for source_folder, target in pairs:
      local = manifests.local_copy(source_folder)
      shutil.copytree(os.fspath(local), os.fspath(target))
    items.write(
      copied.items,
      source,
      listed.contract,
      thumbnail=lambda row: _thumbnail(source, row),
    )
    stages.save_part(layout.stage(temporary, "fast"), fast, _reads_text)
    if slow is not None:
      stages.save_part(
        layout.stage(temporary, layout.SLOW), slow, _reads_memories
      )
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
  """The first frame as WebP, in its proportions, SIDE pixels at most."""
  if source.original is not None:
    frames = source.original(row)
  else:
    frames = source.visuals([row])[0]
  image = Image.fromarray(frames[0])
  image.thumbnail((SIDE, SIDE))
  encoded = io.BytesIO()
  image.save(encoded, "WEBP", quality=85)
  return encoded.getvalue()
