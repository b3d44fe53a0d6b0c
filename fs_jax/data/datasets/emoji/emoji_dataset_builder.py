"""TFDS builder of single emoji: config, splits, records. See README.md."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from fs_jax.data.datasets import common, sprites
from fs_jax.data.datasets.emoji import sequences

LICENCE = "CC BY-SA 4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by-sa/4.0/"
ATTRIBUTION = (
  f"Drawings: {sprites.credits()}. The pictures are adapted material: drawn "
  f"as pixels on white; as a collection shared under {LICENCE} ({LICENCE_URL})."
)


@dataclasses.dataclass(eq=False)
class EmojiConfig(tfds.core.BuilderConfig):
  """What is drawn. Leave `name` empty: it follows from the other fields.

  Raises:
    ValueError: a field is out of range.
  """

  name: str = ""
  seed: int = 0  # decides the splits
  size: int = 64  # px, height and width
  held_out_artist: str = "twemoji"  # in test_other_artist only
  languages: tuple[str, ...] = ("en", "de", "es", "fr")  # for names
  validation_share: float = 0.1  # share of the base sequences
  test_share: float = 0.1
  limit: int = 0  # sequences to keep, evenly spread; 0 = all

  def __post_init__(self) -> None:
    self.languages = tuple(self.languages)
    if not 8 <= self.size <= 512:
      raise ValueError(
        f"EmojiConfig.size: must be 8 to 512 px; got {self.size}. use 64"
      )
    if self.held_out_artist not in sprites.ARTISTS:
      raise ValueError(
        f"EmojiConfig.held_out_artist: must be one of "
        f"{', '.join(sprites.ARTISTS)}; got {self.held_out_artist!r}. "
        "use one of them"
      )
    shares = self.validation_share, self.test_share
    if min(shares) < 0 or sum(shares) >= 1:
      raise ValueError(
        "EmojiConfig.validation_share and test_share: must be >= 0 and sum to "
        f"less than 1; got {shares}. use 0.1 and 0.1"
      )
    if self.limit < 0:
      raise ValueError(
        f"EmojiConfig.limit: must be >= 0; got {self.limit}. 0 keeps all"
      )
    self.name = self.name or common.config_name(self, f"seed_{self.seed}")

  @property
  def pictures(self) -> int:
    """About how many there are, in all splits together."""
    return self.limit or 4_500


class Builder(common.Builder):
  """Drawings of Unicode emoji by two artists, with their names."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First."}
  CONFIG = EmojiConfig

  def _info(self) -> tfds.core.DatasetInfo:
    side = self.builder_config.size
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "id": tfds.features.Text(),
          "image": tfds.features.Image(
            shape=(side, side, 3), encoding_format="png"
          ),
          "captions": tfds.features.Sequence(tfds.features.Text()),
          "languages": tfds.features.Sequence(tfds.features.Text()),
          "group": np.int64,
          "artist": tfds.features.Text(),
          "sequence": tfds.features.Text(),
        }
      ),
      disable_shuffling=True,  # records stay in the order of their ids
      homepage="https://openmoji.org",
      license=f"{LICENCE}, {LICENCE_URL}. {ATTRIBUTION}",
      metadata=tfds.core.MetadataDict(
        attribution=ATTRIBUTION, licence=LICENCE, licence_url=LICENCE_URL
      ),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, common.Examples]:
    del dl_manager  # nothing is downloaded
    c = self.builder_config
    names = list(enumerate(sequences.list_named(c.languages)))
    if c.limit and c.limit < len(names):
      names = [names[i * len(names) // c.limit] for i in range(c.limit)]
    parts: dict[str, list[tuple[int, sequences.Named]]] = {
      "train": [],
      "validation": [],
      "test": [],
    }
    for group, named in names:
      split = sequences.choose_split(
        named.sequence, c.seed, c.validation_share, c.test_share
      )
      parts[split].append((group, named))
    artists = [a for a in sprites.ARTISTS if a != c.held_out_artist]
    out = {
      split: self._generate_examples(split, artists, part)
      for split, part in parts.items()
      if part
    }
    if parts["test"]:
      out["test_other_artist"] = self._generate_examples(
        "test_other_artist", [c.held_out_artist], parts["test"]
      )
    return out

  def _generate_examples(
    self,
    split: str,
    artists: list[str],
    names: list[tuple[int, sequences.Named]],
  ) -> common.Examples:
    size = self.builder_config.size
    return self.number(split, _records(split, artists, names, size))


def _records(
  split: str,
  artists: list[str],
  names: list[tuple[int, sequences.Named]],
  size: int,
) -> Iterator[common.Record]:
  number = 0
  for group, named in names:
    for artist in artists:
      path = sprites.files(artist).get(named.sequence)
      if path is None:
        continue
      picture = sprites.lay_on_white(sprites.draw(path, size))
      yield {
        "id": f"{split}-{number:06d}",
        "image": sprites.encode_png(np.asarray(picture)),
        "captions": list(named.texts),
        "languages": list(named.languages),
        "group": group,
        "artist": artist,
        "sequence": named.sequence,
      }
      number += 1
