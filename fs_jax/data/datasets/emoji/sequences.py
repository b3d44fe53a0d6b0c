"""Emoji sequences: their names in several languages, and their variants.

A sequence is spelled as in `sprites.py`: code points in hex without U+FE0F.
"""

import hashlib
from typing import Any, NamedTuple

from fs_jax.data.datasets import sprites

_SKIN = {f"{point:x}" for point in range(0x1F3FB, 0x1F400)}
_GENDER = {"2640", "2642"}
_HAIR = {f"{point:x}" for point in range(0x1F9B0, 0x1F9B4)}
_DIRECTION = {"27a1", "2194", "2195"}
_JOINER = "200d"
# Variants of a person -> the person as whose variants they are drawn.
_PERSON = {
  "1f468": "1f9d1",  # man -> person
  "1f469": "1f9d1",  # woman
  "1f466": "1f9d2",  # boy -> child
  "1f467": "1f9d2",  # girl
  "1f474": "1f9d3",  # old man -> older person
  "1f475": "1f9d3",  # old woman
  "1f478": "1fac5",  # princess -> person with crown
  "1f934": "1fac5",  # prince
  "1f57a": "1f483",  # man dancing -> woman dancing
  "1f46c": "1f46b",  # men holding hands -> woman and man holding hands
  "1f46d": "1f46b",  # women holding hands
  "1f930": "1fac4",  # pregnant woman -> pregnant person
  "1fac3": "1fac4",  # pregnant man
}
# Joined people, reduced to their bases -> the single emoji that shows the same.
_JOINED = {
  ("1f9d1", "1f91d", "1f9d1"): "1f46b",  # holding hands
  ("1f9d1", "2764", "1f48b", "1f9d1"): "1f48f",  # kiss
  ("1f9d1", "2764", "1f9d1"): "1f491",  # couple with heart
  ("1f9d1", "1f384"): "1f385",  # mx claus, Santa, Mrs. Claus
  ("1f9d1", "1f430", "1f9d1"): "1f46f",  # people with bunny ears
  ("1f9d1", "1faef", "1f9d1"): "1f93c",  # people wrestling
  ("1faf1", "1faf2"): "1f91d",  # handshake of two skin tones
}
_SINGLES = {"1f936": "1f385"}  # Mrs. Claus
_FAMILY = "1f46a"


class Named(NamedTuple):
  """A sequence and its names; English comes first."""

  sequence: str
  texts: tuple[str, ...]
  languages: tuple[str, ...]


def base(sequence: str) -> str:
  """The sequence without skin tones, genders, hair and direction.

  All sequences of one base go to the same split, so that no test drawing has a
  twin in another skin tone in training.
  """
  drop = _SKIN | _GENDER | _HAIR | _DIRECTION | {_JOINER}
  points = [p for p in sequence.split("-") if p not in drop] or [sequence]
  points = [_SINGLES.get(p, _PERSON.get(p, p)) for p in points]
  if len(points) > 1 and set(points) <= {"1f9d1", "1f9d2"}:
    return _FAMILY
  return _JOINED.get(tuple(points), "-".join(points))


def choose_split(
  sequence: str, seed: int, validation_share: float, test_share: float
) -> str:
  """Chooses "train", "validation" or "test" by a hash of base and seed."""
  digest = hashlib.sha256(f"{seed}:{base(sequence)}".encode()).digest()
  place = int.from_bytes(digest[:8], "big") / 2**64
  if place < test_share:
    return "test"
  return "validation" if place < test_share + validation_share else "train"


def languages() -> tuple[str, ...]:
  """The languages that have names."""
  return tuple(_package().LANGUAGES)


def list_named(wanted: tuple[str, ...]) -> list[Named]:
  """Lists every fully qualified sequence with its names, sorted.

  Aliases exist in English only.

  Raises:
    ValueError: an unknown language, or a missing package.
  """
  emoji = _package()
  unknown = [language for language in wanted if language not in emoji.LANGUAGES]
  if unknown or not wanted:
    mend = f"remove {unknown}" if unknown else "name one, such as en"
    raise ValueError(
      f"languages: must be some of {', '.join(emoji.LANGUAGES)}; got "
      f"{wanted!r}. {mend}"
    )
  wanted = tuple(
    sorted(set(wanted), key=lambda x: (x != "en", wanted.index(x)))
  )
  emoji.config.load_language(list(wanted))
  out = []
  for characters, data in emoji.EMOJI_DATA.items():
    if data["status"] != emoji.STATUS["fully_qualified"]:
      continue
    texts: dict[str, str] = {}  # text -> language, in order, each once
    for language in wanted:
      names = [data[language]] if language in data else []
      names += data.get("alias", []) if language == "en" else []
      for name in names:
        texts.setdefault(_plain(name), language)
    texts.pop("", None)
    if texts:
      code = sprites.sequence(characters)
      out.append(Named(code, tuple(texts), tuple(texts.values())))
  return sorted(out)


def _plain(name: str) -> str:
  """ ":fox_face:" -> "fox face"."""
  return " ".join(name.strip(":").replace("_", " ").split())


def _package() -> Any:
  try:
    import emoji
  except ImportError:
    raise ValueError(
      "emoji names: the package emoji must be installed; got none. "
      "pip install emoji"
    ) from None
  return emoji
