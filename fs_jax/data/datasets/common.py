"""Shared by the dataset builders: names of configs, and the file format."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from absl import logging

Progress = Callable[[str, int], None]  # (split, pictures written so far)
Record = dict[str, Any]  # feature -> value
Examples = Iterator[tuple[int, Record]]  # by increasing keys


def config_name(config: Any, prefix: str) -> str:
  """Names a config: the prefix, and a hash if a field is not its default.

  So two configs that make different data never share a folder.
  """
  skip = {f.name for f in dataclasses.fields(tfds.core.BuilderConfig)}
  changed = {
    f.name: getattr(config, f.name)
    for f in dataclasses.fields(config)
    if f.name not in skip | {"seed"} and getattr(config, f.name) != f.default
  }
  if not changed:
    return prefix
  text = json.dumps(changed, sort_keys=True)
  return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A builder that writes array_record, so that nothing needs TensorFlow.

  Attributes:
    progress: called while pictures are written, if set.
  """

  CONFIG: type  # the dataclass of its configs, with a default for every field
  progress: Progress | None = None
  # Nothing is downloaded: TFDS need not look for a file of checksums.
  url_infos: ClassVar[dict[str, Any]] = {}

  def __init__(
    self, *, file_format: str | None = None, config: Any = None, **kwargs: Any
  ) -> None:
    config = self.CONFIG() if config is None else config
    if not isinstance(config, self.CONFIG):
      raise ValueError(
        f"{self.name}: config must be a {self.CONFIG.__name__}; got "
        f"{config!r}. pass config={self.CONFIG.__name__}(...)"
      )
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it warns of every custom config
    try:
      super().__init__(
        file_format=file_format or "array_record", config=config, **kwargs
      )
    finally:
      logging.set_verbosity(level)

  def number(self, split: str, records: Iterable[Record]) -> Examples:
    """Gives records increasing integer keys, their order on disk.

    Reports to `progress`.
    """
    number = 0
    for number, record in enumerate(records, 1):
      if self.progress and number % 500 == 0:
        self.progress(split, number)
      yield number, record
    if self.progress:
      self.progress(split, number)
