"""TFDS builder of the scenes: config, splits, records. See README.md."""

import dataclasses
from collections.abc import Iterable, Iterator
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
  """What is drawn. Leave `name` empty: it follows from the other fields.

  Raises:
    ValueError: a field is out of range, or two do not fit each other.
  """

  name: str = ""
  seed: int = 0  # decides every random draw
  train: int = 1_500  # captioned pictures
  uncaptioned: int = 20_000  # pictures without captions
  validation_groups: int = 128  # 4 pictures each
  test_groups: int = 256  # 4 pictures each, drawn by two artists
  captions: int = 5  # per picture
  # Chance that a sampled clause is a relation and not a place. At 0.25, about a
  # third of the clauses that are kept are relations.
  relation_share: float = 0.12
  test_pairs: float = 0.2  # share of pairs of kinds, never seen in training
  validation_pairs: float = 0.1

  def __post_init__(self) -> None:
    for field in (
      "seed",
      "train",
      "uncaptioned",
      "captions",
      "validation_groups",
      "test_groups",
    ):
      ok = getattr(self, field) >= 0
      self._require(ok, field, "must be >= 0", "use 0 or more")
    for field in ("relation_share", "test_pairs", "validation_pairs"):
      ok = 0 <= getattr(self, field) <= 1
      self._require(ok, field, "must be in [0, 1]", "use a share such as 0.2")
    for split in ("test", "validation"):
      groups, pairs = f"{split}_groups", f"{split}_pairs"
      ok = getattr(self, pairs) > 0 or getattr(self, groups) == 0
      rule = f"must be > 0 when {groups} is not 0"
      self._require(ok, pairs, rule, f"use 0.1, or set {groups}=0")
    ok = self.test_pairs + self.validation_pairs <= 0.5
    rule = "plus validation_pairs must be <= 0.5"
    self._require(ok, "test_pairs", rule, "use 0.2 and 0.1")
    self.name = self.name or common.config_name(self, f"seed_{self.seed}")

  def _require(self, ok: bool, field: str, rule: str, mend: str) -> None:
    if not ok:
      raise ValueError(
        f"ScenesConfig.{field}: {rule}; got {getattr(self, field)}. {mend}"
      )

  @property
  def pictures(self) -> int:
    """How many there are, in all splits together."""
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

  def _split_generators(self, dl_manager: Any) -> dict[str, common.Examples]:
    del dl_manager  # nothing is downloaded
    c = self.builder_config
    roles = layout.assign_pairs(c.seed, c.test_pairs, c.validation_pairs)
    colours = len(render.BACKGROUNDS)
    drawing = (roles, colours, c.captions, c.relation_share)
    splits: dict[str, common.Examples] = {}
    if c.train:
      pictures = galleries.draw_captioned(c.seed, c.train, *drawing)
      splits["train"] = self._examples("train", ARTIST, pictures)
    if c.uncaptioned:
      pictures = galleries.draw_plain(
        c.seed, "uncaptioned", c.uncaptioned, roles, colours
      )
      splits["uncaptioned"] = self._examples("uncaptioned", ARTIST, pictures)
    for split in ("validation", "test"):
      groups = getattr(c, f"{split}_groups")
      if not groups:
        continue
      gallery = galleries.draw_grouped(c.seed, split, groups, *drawing)
      splits[split] = self._examples(split, ARTIST, gallery)
      if split == "test":  # the same pictures again
        other = "test_other_artist"
        splits[other] = self._examples(other, OTHER_ARTIST, gallery)
    return splits

  def _generate_examples(
    self, split: str, artist: str, pictures: Iterable[galleries.Picture]
  ) -> common.Examples:
    yield from self._examples(split, artist, pictures)

  def _examples(
    self, split: str, artist: str, pictures: Iterable[galleries.Picture]
  ) -> common.Examples:
    return self.number(split, _records(split, artist, pictures))


def _records(
  split: str, artist: str, pictures: Iterable[galleries.Picture]
) -> Iterator[common.Record]:
  for number, p in enumerate(pictures):
    pixels = render.render(artist, p.kind, p.size, p.y0, p.x0, p.background)
    yield {
      "id": f"{split}-{number:06d}",
      "image": sprites.encode_png(pixels),
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
