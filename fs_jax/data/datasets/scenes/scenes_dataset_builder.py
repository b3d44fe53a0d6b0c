"""TFDS builder of the scenes: config, splits, records. See README.md."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from fs_jax.data.datasets import common, sprites
from fs_jax.data.datasets.scenes import (
  galleries,
  grammar,
  layout,
  render,
  truth,
)

LICENCE = "CC BY-SA 4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by-sa/4.0/"
ATTRIBUTION = (
  f"Drawings: {sprites.credits()}. The scenes are adapted material: the "
  "drawings were made smaller and arranged on plain backgrounds; they are "
  f"shared under {LICENCE} ({LICENCE_URL})."
)
ARTIST = "openmoji"
OTHER_ARTIST = "twemoji"


@dataclasses.dataclass(eq=False)
class ScenesConfig(tfds.core.BuilderConfig):
  """What is drawn. The name follows from the values; leave it empty.

  Raises:
    ValueError: a field, or two that do not fit.
  """

  name: str = ""
  seed: int = 0  # of every random draw
  train: int = 1_500  # captioned pictures
  uncaptioned: int = 20_000  # pictures without captions
  validation_groups: int = 128  # of 4 pictures
  test_groups: int = 256  # of 4 pictures, drawn by two artists
  captions: int = 5  # a picture
  # Chance of a sampled clause to be a relation, the others being places. 0.25
  # leaves relations in about a third of the clauses that are kept.
  relation_share: float = 0.12
  test_pairs: float = 0.2  # of the pairs of kinds, never seen in training
  validation_pairs: float = 0.1

  def __post_init__(self):
    for field in ("seed", "train", "uncaptioned", "captions"):
      self._require(field, getattr(self, field) >= 0, "must be >= 0")
    for field in ("validation_groups", "test_groups"):
      self._require(field, getattr(self, field) >= 0, "must be >= 0")
    for field in ("relation_share", "test_pairs", "validation_pairs"):
      good = 0 <= getattr(self, field) <= 1
      self._require(field, good, "must be in [0, 1]")
    for split in ("test", "validation"):
      groups, pairs = f"{split}_groups", f"{split}_pairs"
      good = getattr(self, pairs) > 0 or getattr(self, groups) == 0
      self._require(pairs, good, f"must be > 0 when {groups} is not 0")
    held_out = self.test_pairs + self.validation_pairs
    self._require(
      "test_pairs", held_out <= 0.5, "plus validation_pairs must be <= 0.5"
    )
    self.name = self.name or common.named(self, f"seed_{self.seed}")

  def _require(self, field: str, good: bool, rule: str) -> None:
    if not good:
      raise ValueError(
        f"ScenesConfig.{field}: {rule}; got {getattr(self, field)}. "
        f"change {field}"
      )

  @property
  def pictures(self) -> int:
    """In all splits together."""
    groups = self.validation_groups + 2 * self.test_groups
    return self.train + self.uncaptioned + 4 * groups


class Builder(common.Builder):
  """Scenes of a few emoji, with captions whose truth is known exactly."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First."}
  CONFIG = ScenesConfig

  def _info(self) -> tfds.core.DatasetInfo:
    side = truth.CANVAS
    names = [kind.name for kind in grammar.KINDS]
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "id": tfds.features.Text(),
          "image": tfds.features.Image(
            shape=(side, side, 3), encoding_format="png"
          ),
          "captions": tfds.features.Sequence(tfds.features.Text()),
          "group": np.int64,
          "artist": tfds.features.Text(),
          "objects": tfds.features.Sequence(
            {
              "name": tfds.features.Text(),
              "kind": np.int32,
              "box": tfds.features.Tensor(shape=(4,), dtype=np.int32),
              "size": tfds.features.Text(),
            }
          ),
        }
      ),
      disable_shuffling=True,  # records stay in the order of their ids
      homepage="https://openmoji.org",
      license=f"{LICENCE}, {LICENCE_URL}. {ATTRIBUTION}",
      metadata=tfds.core.MetadataDict(
        attribution=ATTRIBUTION,
        licence=LICENCE,
        licence_url=LICENCE_URL,
        kinds=names,
        vocabulary=list(grammar.VOCABULARY),
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    c = self.builder_config
    roles = layout.pair_roles(c.seed, c.test_pairs, c.validation_pairs)
    colours = len(render.BACKGROUNDS)
    said = (roles, colours, c.captions, c.relation_share)
    splits = {}
    if c.train:
      pictures = galleries.captioned(c.seed, c.train, *said)
      splits["train"] = self._examples("train", ARTIST, pictures)
    if c.uncaptioned:
      pictures = galleries.plain(
        c.seed, "uncaptioned", c.uncaptioned, roles, colours
      )
      splits["uncaptioned"] = self._examples("uncaptioned", ARTIST, pictures)
    for split in ("validation", "test"):
      groups = getattr(c, f"{split}_groups")
      if not groups:
        continue
      gallery = galleries.grouped(c.seed, split, groups, *said)
      splits[split] = self._examples(split, ARTIST, gallery)
      if split == "test":  # the same pictures again
        other = "test_other_artist"
        splits[other] = self._examples(other, OTHER_ARTIST, gallery)
    return splits

  def _generate_examples(self, split, artist, pictures):
    yield from self._examples(split, artist, pictures)

  def _examples(self, split: str, artist: str, pictures):
    return self.counted(split, _records(split, artist, pictures))


def _records(split: str, artist: str, pictures) -> Iterator[dict[str, Any]]:
  for number, p in enumerate(pictures):
    pixels = render.render(artist, p.kind, p.size, p.y0, p.x0, p.background)
    yield {
      "id": f"{split}-{number:06d}",
      "image": sprites.png(pixels),
      "captions": p.captions,
      "group": p.group,
      "artist": artist,
      "objects": [
        {
          "name": grammar.KINDS[kind].name,
          "kind": kind,
          "box": [y, x, y + size, x + size],
          "size": grammar.SIZES[size >= layout.BIG_PX[0]],
        }
        for kind, size, y, x in zip(p.kind, p.size, p.y0, p.x0, strict=True)
      ],
    }
