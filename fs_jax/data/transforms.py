"""Bytes to pixels: decoding, resizing, random crops. Pure numpy and Pillow.

Vectors are comparable only if their pictures were treated alike, so every
program decodes and resizes through this module.
"""

import contextlib
import io
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, ImageSequence

SHIFT = 0.05  # the largest random shift, as a share of the frame's side
CROP_AREA = (0.5, 1.0)  # a random resized crop's share of the frame
CROP_RATIO = (3 / 4, 4 / 3)  # its width / height


def decode(data: bytes, source: str) -> np.ndarray:
  """Decodes a picture: RGB uint8 [H,W,3].

  Applies EXIF orientation, lays transparency on white and takes the first frame
  of an animation. Errors call the picture `source`.

  Raises:
    ValueError: not a picture, or a truncated or corrupt one.
  """
  with _open(data, source) as picture:
    return _to_rgb(picture)


def decode_video(data: bytes, frames: int, source: str) -> np.ndarray:
  """Decodes a video or an animated picture: RGB uint8 [T,H,W,3].

  Takes T frames evenly spaced, each the middle of its share; a shorter video
  repeats frames. Animated GIF, PNG and WebP need nothing else; other formats
  need PyAV.

  Raises:
    ValueError: not a video, a truncated or corrupt one, or no PyAV.
  """
  try:
    Image.open(io.BytesIO(data)).close()
  except Image.UnidentifiedImageError:
    return _decode_av(data, frames, source)
  with _open(data, source) as picture:
    count = getattr(picture, "n_frames", 1)
    chosen = space_evenly(count, frames)
    kept = {
      i: _to_rgb(frame)
      for i, frame in enumerate(ImageSequence.Iterator(picture))
      if i in set(chosen)
    }
  return np.stack([kept[i] for i in chosen])


def space_evenly(count: int, frames: int) -> list[int]:
  """Chooses T of `count` frames: the middle one of each of T equal shares."""
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
  return _resize(frame, size, box)


def random_crop(
  frames: np.ndarray, size: int, generator: np.random.Generator
) -> np.ndarray:
  """uint8 [T,H,W,3] -> uint8 [T,size,size,3]: one random crop of all frames.

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
  return np.stack([_resize(frame, size, box) for frame in frames])


def max_shift(height: int, width: int) -> int:
  """The most pixels by which a random shift moves a frame."""
  return max(1, int(SHIFT * min(height, width)))


def shift(frames: np.ndarray, down: int, right: int) -> np.ndarray:
  """uint8 [T,H,W,3] moved by whole pixels; edges are repeated.

  Sizes and arrangement stay as they were, which captions rely on; patches see
  other parts of objects, which a ViT has to learn to ignore.
  """
  height, width = frames.shape[1:3]
  # The part that stays in sight. Slices: a gather takes six times as long.
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


def _resize(
  frame: np.ndarray, size: int, box: tuple[float, float, float, float]
) -> np.ndarray:
  height, width = frame.shape[:2]
  if height == width == size and box == (0, 0, width, height):
    return frame
  picture = Image.fromarray(frame)
  # Rounding may put an edge an ulp outside, which Pillow refuses.
  box = (box[0], box[1], min(box[2], width), min(box[3], height))
  # Pillow's bicubic filter grows with the reduction: always antialiased.
  return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box))


@contextlib.contextmanager
def _open(data: bytes, source: str) -> Iterator[Image.Image]:
  """Opens a picture in Pillow; any failure becomes an error naming `source`."""
  try:
    with Image.open(io.BytesIO(data)) as picture:
      yield picture
  # Pillow's plugins raise whatever a corrupt header leads them into.
  except Exception as error:
    raise ValueError(
      f"{source}: must be a whole picture; got {len(data)} bytes that do not "
      f"decode ({type(error).__name__}: {error}). replace or remove it"
    ) from error


def _to_rgb(picture: Image.Image) -> np.ndarray:
  """Upright, on white, 8 bits a channel: uint8 [H,W,3]."""
  picture = ImageOps.exif_transpose(picture)
  if picture.mode.startswith("I;16"):  # Pillow would clip at 255
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
    # Decoded twice: a container may not know its length, and a whole video may
    # not fit into memory.
    with av.open(io.BytesIO(data), "r") as container:
      count = sum(1 for _ in container.decode(video=0))
    chosen = space_evenly(count, frames)
    with av.open(io.BytesIO(data), "r") as container:
      kept = {
        i: frame.to_ndarray(format="rgb24")
        for i, frame in enumerate(container.decode(video=0))
        if i in set(chosen)
      }
    return np.stack([kept[i] for i in chosen])
  except (av.FFmpegError, LookupError) as error:
    raise ValueError(
      f"{source}: must be a whole video; got {len(data)} bytes that do not "
      f"decode ({type(error).__name__}: {error}). replace or remove it"
    ) from error
