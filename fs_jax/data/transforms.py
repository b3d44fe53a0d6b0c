"""Bytes to pixels: decoding, resizing, random crops. Pure numpy and pillow.

What is done to a picture here is part of the contract between vectors: every
program decodes and resizes through this module.
"""

import contextlib
import io
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, ImageSequence

SHIFT = 0.05  # of a random shift, share of the frame's side
CROP_AREA = (0.5, 1.0)  # of a random resized crop, share of the frame
CROP_RATIO = (3 / 4, 4 / 3)  # its width / height


def decode(data: bytes, source: str) -> np.ndarray:
  """One picture -> RGB uint8 [H,W,3].

  EXIF orientation is applied, transparency laid on white, and of an animation
  the first frame taken. `source` is what errors call the picture.

  Raises:
    ValueError: not a picture, or a truncated or corrupt one.
  """
  with _opened(data, source) as picture:
    return _rgb(picture)


def decode_video(data: bytes, frames: int, source: str) -> np.ndarray:
  """A video, or an animated picture -> RGB uint8 [T,H,W,3].

  T frames evenly spaced, each the middle of its share; a shorter video repeats
  frames. Animated GIF, PNG and WebP need nothing else, other formats PyAV.

  Raises:
    ValueError: not a video, a truncated or corrupt one, or no PyAV.
  """
  try:
    Image.open(io.BytesIO(data)).close()
  except Image.UnidentifiedImageError:
    return _decode_av(data, frames, source)
  with _opened(data, source) as picture:
    count = getattr(picture, "n_frames", 1)
    chosen = spaced(count, frames)
    found = {
      i: _rgb(frame)
      for i, frame in enumerate(ImageSequence.Iterator(picture))
      if i in set(chosen)
    }
  return np.stack([found[i] for i in chosen])


def spaced(count: int, frames: int) -> list[int]:
  """T of `count` frames: the middle one of each of T equal shares."""
  return [int((t + 0.5) * count / frames) for t in range(frames)]


def resize(
  frame: np.ndarray, size: int, method: Literal["squash", "crop"]
) -> np.ndarray:
  """uint8 [H,W,3] -> uint8 [size,size,3], bicubic, antialiased.

  `squash` changes the aspect ratio; `crop` keeps the centre square only.
  """
  height, width = frame.shape[:2]
  box = (0.0, 0.0, float(width), float(height))
  if method == "crop":
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
  return _resized(frame, size, box)


def random_crop(
  frames: np.ndarray, size: int, generator: np.random.Generator
) -> np.ndarray:
  """uint8 [T,H,W,3] -> uint8 [T,size,size,3]: one random part of all frames.

  Never mirrored: captions say left and right.
  """
  height, width = frames.shape[1:3]
  low, high = (math.log(ratio) for ratio in CROP_RATIO)
  area, ratio, down, right = generator.random(4)
  area = CROP_AREA[0] + area * (CROP_AREA[1] - CROP_AREA[0])
  ratio = math.exp(low + ratio * (high - low))
  w = width * min(1.0, math.sqrt(area * ratio))
  h = height * min(1.0, math.sqrt(area / ratio))
  left, top = right * (width - w), down * (height - h)
  box = (left, top, left + w, top + h)
  return np.stack([_resized(frame, size, box) for frame in frames])


def most_shift(height: int, width: int) -> int:
  """Pixels that a random shift moves a frame by, at most."""
  return max(1, int(SHIFT * min(height, width)))


def shift(frames: np.ndarray, down: int, right: int) -> np.ndarray:
  """uint8 [T,H,W,3] moved by whole pixels; edges are repeated.

  Sizes and places stay what they were, which captions of arrangements need;
  patches see other parts of things, which a ViT has to get used to.
  """
  height, width = frames.shape[1:3]
  # What stays in sight; slices, as a gather costs six times as much.
  top, bottom = max(down, 0), height + min(down, 0)
  left, far = max(right, 0), width + min(right, 0)
  moved = np.empty_like(frames)
  moved[:, top:bottom, left:far] = frames[
    :, top - down : bottom - down, left - right : far - right
  ]
  moved[:, :top] = moved[:, top : top + 1]
  moved[:, bottom:] = moved[:, bottom - 1 : bottom]
  moved[:, :, :left] = moved[:, :, left : left + 1]
  moved[:, :, far:] = moved[:, :, far - 1 : far]
  return moved


def _resized(
  frame: np.ndarray, size: int, box: tuple[float, float, float, float]
) -> np.ndarray:
  height, width = frame.shape[:2]
  if height == width == size and box == (0, 0, width, height):
    return frame
  picture = Image.fromarray(frame)
  # Rounding may put an edge an ulp outside, which pillow refuses.
  box = (box[0], box[1], min(box[2], width), min(box[3], height))
  # Pillow's bicubic filter grows with the reduction: always antialiased.
  return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box))


@contextlib.contextmanager
def _opened(data: bytes, source: str) -> Iterator[Image.Image]:
  """A pillow picture; whatever fails on it is an error that names `source`."""
  try:
    with Image.open(io.BytesIO(data)) as picture:
      yield picture
  # Pillow's plugins raise whatever a corrupt header leads them into.
  except Exception as error:
    raise ValueError(
      f"{source}: must be a whole picture; got {len(data)} bytes that do not "
      f"decode ({type(error).__name__}: {error}). replace or remove it"
    ) from error


def _rgb(picture: Image.Image) -> np.ndarray:
  """Upright, on white, 8 bits a channel: uint8 [H,W,3]."""
  picture = ImageOps.exif_transpose(picture)
  if picture.mode.startswith("I;16"):  # pillow would clip at 255
    grey = np.asarray(picture) >> 8
    picture = Image.fromarray(grey.astype(np.uint8))
  if picture.has_transparency_data:
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture)
  return np.asarray(picture.convert("RGB"))


def _decode_av(data: bytes, frames: int, source: str) -> np.ndarray:
  try:
    import av  # optional: only videos need it
  except ImportError:
    raise ValueError(
      f"{source}: must be a picture or an animated one, or PyAV must be "
      "installed; got neither. pip install fs_jax[video]"
    ) from None
  try:
    # Twice, because a container may not know its length and a whole video
    # does not fit into memory.
    with av.open(io.BytesIO(data), "r") as container:
      count = sum(1 for _ in container.decode(video=0))
    chosen = spaced(count, frames)
    with av.open(io.BytesIO(data), "r") as container:
      found = {
        i: frame.to_ndarray(format="rgb24")
        for i, frame in enumerate(container.decode(video=0))
        if i in set(chosen)
      }
    return np.stack([found[i] for i in chosen])
  except (av.FFmpegError, LookupError) as error:
    raise ValueError(
      f"{source}: must be a whole video; got {len(data)} bytes that do not "
      f"decode ({type(error).__name__}: {error}). replace or remove it"
    ) from error
