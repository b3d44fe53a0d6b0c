"""Renders layouts: draws sprites once at every size, then only pastes them."""

import functools

import numpy as np
from PIL import Image

from fs_jax.data.datasets import sprites
from fs_jax.data.datasets.scenes import grammar, layout, truth

# Light enough that every drawing stands out.
BACKGROUNDS = (
  (255, 255, 255),
  (255, 246, 219),
  (224, 240, 253),
  (228, 244, 229),
  (252, 228, 236),
  (236, 236, 240),
)
_DETAIL = 192  # px at which an SVG is drawn before it is reduced


@functools.cache
def atlas(artist: str) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
  """Draws every sprite: (kind, px) -> colour times alpha, and 1 - alpha.

  They are float32 [px,px,3], from 0 to 255, and float32 [px,px,1].

  Raises:
    ValueError: the artist is unknown, not installed, or lacks a kind.
  """
  files = sprites.files(artist)
  missing = [k.name for k in grammar.KINDS if k.sequence not in files]
  if missing:
    raise ValueError(
      f"artist {artist}: must have drawn every kind; got none of "
      f"{', '.join(missing)}. install the release in pyproject.toml"
    )
  out = {}
  for number, kind in enumerate(grammar.KINDS):
    large = sprites.trim(sprites.draw(files[kind.sequence], _DETAIL))
    for low, high in (layout.SMALL_PX, layout.BIG_PX):
      for px in range(low, high + 1):
        small = large.resize((px, px), Image.Resampling.LANCZOS)
        rgba = np.asarray(small, np.float32)
        alpha = rgba[..., 3:] / 255
        out[number, px] = rgba[..., :3] * alpha, 1 - alpha
  return out


def render(
  artist: str,
  kind: list[int],
  size: list[int],
  y0: list[int],
  x0: list[int],
  background: int,
) -> np.ndarray:
  """Renders a picture: uint8 [64,64,3].

  Positions and sizes are in px, `background` is an index into BACKGROUNDS.
  """
  sheet = atlas(artist)
  canvas = np.empty((truth.CANVAS, truth.CANVAS, 3), np.float32)
  canvas[:] = BACKGROUNDS[background]
  for k, px, y, x in zip(kind, size, y0, x0, strict=True):
    colour, through = sheet[k, px]
    patch = canvas[y : y + px, x : x + px]
    patch *= through
    patch += colour
  return (canvas + 0.5).astype(np.uint8)
