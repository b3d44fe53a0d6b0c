"""What the dataset builders share: their config's name, their file format."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from absl import logging

Progress = Callable[[str, int], None]  # (split, pictures of it written)


def named(config: Any, prefix: str) -> str:
  """Name of a config: the prefix, and a hash where a field is not its default.

  Two configs that make different data so never share a folder.
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

  CONFIG: type  # the dataclass of its configs; called without arguments
  progress: Progress | None = None
  # Nothing is downloaded: TFDS need not look for a file of checksums.
  url_infos: ClassVar[dict[str, Any]] = {}

  def __init__(self, *, file_format=None, config=None, **kwargs):
    config = self.CONFIG() if config is None else config
    if not isinstance(config, self.CONFIG):
      raise ValueError(
        f"{self.name}: config must be a {self.CONFIG.__name__}; got "
        f"{config!r}. pass config={self.CONFIG.__name__}(...)"
      )
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it warns of every config of a user
    try:
      super().__init__(
        file_format=file_format or "array_record", config=config, **kwargs
      )
    finally:
      logging.set_verbosity(level)

  def counted(self, split: str, examples):
    """The examples with increasing integer keys (their order on disk), while
    `progress` is told."""
    number = 0
    for number, example in enumerate(examples, 1):
      if self.progress and number % 500 == 0:
        self.progress(split, number)
      yield number, example
    if self.progress:
      self.progress(split, number)
