"""The language of the scenes: kinds of object, captions, text and back.

A caption is a tuple of clauses. It is true of a scene if every clause is, each
on its own: a second "a fox" need not be the fox of the first clause.

  caption   clause {"and" clause}                      at most 16 words
  clause    phrase | phrase place | phrase relation phrase
  phrase    "a" [size] name | ("two" | "three") [size] plural
  size      "small" | "big"
  place     "in the top left" ... | "on the left" ... | "at the top" ...
  relation  "left of" | "right of" | "above" | "below"

What the words mean (`truth.py` decides it, in pixels; y grows downward):

  a X            at least one object satisfies the words
  two X, three X exactly two, three objects satisfy them
  small, big     sprites of 14-18 px, 24-30 px
  X place        as above, counting only the objects whose centre is there:
                 "two foxes on the left" = exactly two foxes are on the left,
                 wherever other foxes are. Halves and quarters are cut at the
                 middle of the canvas: an object in the top left is also on the
                 left and at the top.
  X left of Y    the centre of X is more than 6 px further left, whatever the
                 heights. "a" picks one object, "two" and "three" mean all: "two
                 foxes left of a car" = there are exactly two foxes, and some
                 car that both are left of. An object is never beside itself.

Scenes keep a margin from every borderline (`layout.py`), so that no caption's
truth hangs on a pixel.
"""

from typing import NamedTuple


class Kind(NamedTuple):
  """A kind of object: its names, and the emoji that shows it."""

  name: str
  plural: str
  sequence: str


# Told apart at 14 px by shape and colour, drawn by both artists; no name is
# part of another. The order is the `kind` of the records: append, never sort.
KINDS = (
  Kind("tomato", "tomatoes", "1f345"),
  Kind("fox", "foxes", "1f98a"),
  Kind("pineapple", "pineapples", "1f34d"),
  Kind("car", "cars", "1f697"),
  Kind("frog", "frogs", "1f438"),
  Kind("tree", "trees", "1f332"),
  Kind("snowman", "snowmen", "26c4"),
  Kind("cactus", "cacti", "1f335"),
  Kind("rocket", "rockets", "1f680"),
  Kind("banana", "bananas", "1f34c"),
  Kind("turtle", "turtles", "1f422"),
  Kind("moon", "moons", "1f319"),
  Kind("star", "stars", "2b50"),
  Kind("penguin", "penguins", "1f427"),
  Kind("mushroom", "mushrooms", "1f344"),
  Kind("house", "houses", "1f3e0"),
  Kind("panda", "pandas", "1f43c"),
  Kind("pig", "pigs", "1f437"),
  Kind("pumpkin", "pumpkins", "1f383"),
  Kind("butterfly", "butterflies", "1f98b"),
  Kind("crab", "crabs", "1f980"),
  Kind("rainbow", "rainbows", "1f308"),
  Kind("flamingo", "flamingos", "1f9a9"),
  Kind("diamond", "diamonds", "1f48e"),
)

SIZES = ("small", "big")
COUNTS = {1: "a", 2: "two", 3: "three"}
MAX_WORDS = 16

# place -> (vertical, horizontal) side: -1 top or left, 1 bottom or right, 0 any
PLACES = {
  "in the top left": (-1, -1),
  "in the top right": (-1, 1),
  "in the bottom left": (1, -1),
  "in the bottom right": (1, 1),
  "on the left": (0, -1),
  "on the right": (0, 1),
  "at the top": (-1, 0),
  "at the bottom": (1, 0),
}
# relation -> (vertical, horizontal) direction from the object to the subject
RELATIONS = {
  "left of": (0, -1),
  "right of": (0, 1),
  "above": (-1, 0),
  "below": (1, 0),
}


class Phrase(NamedTuple):
  """ "two small foxes" = Phrase(2, "small", 1)."""

  number: int  # 1 at least one; 2, 3 exactly so many
  size: str  # "", "small" or "big"
  kind: int  # place in KINDS


class Clause(NamedTuple):
  """A phrase, alone, in a place, or in a relation to a second phrase."""

  subject: Phrase
  link: str = ""  # "", a key of PLACES or a key of RELATIONS
  object: Phrase | None = None  # with a relation only


Caption = tuple[Clause, ...]


def _vocabulary() -> tuple[str, ...]:
  texts = ["and", *SIZES, *COUNTS.values(), *PLACES, *RELATIONS]
  texts += [name for kind in KINDS for name in kind[:2]]
  return tuple(sorted({word for text in texts for word in text.split()}))


VOCABULARY = _vocabulary()  # every word a caption can hold, sorted

_NAMES = {k.name: i for i, k in enumerate(KINDS)}
_PLURALS = {k.plural: i for i, k in enumerate(KINDS)}
_WORD_COUNTS = {word: count for count, word in COUNTS.items()}


_LENGTHS = {link: len(link.split()) for link in ("", *PLACES, *RELATIONS)}


def length(clause: Clause) -> int:
  """The number of words in the clause's text."""
  subject, link, target = clause
  words = _LENGTHS[link] + 2 + bool(subject.size)
  return words if target is None else words + 2 + bool(target.size)


def _phrase_text(phrase: Phrase) -> str:
  kind = KINDS[phrase.kind]
  name = kind.name if phrase.number == 1 else kind.plural
  size = f"{phrase.size} " if phrase.size else ""
  return f"{COUNTS[phrase.number]} {size}{name}"


def _clause_text(clause: Clause) -> str:
  parts = [_phrase_text(clause.subject)]
  if clause.link:
    parts.append(clause.link)
  if clause.object is not None:
    parts.append(_phrase_text(clause.object))
  return " ".join(parts)


def text(caption: Caption) -> str:
  """The caption in lower-case words; `parse(text(caption)) == caption`."""
  return " and ".join(map(_clause_text, caption))


def parse(line: str) -> Caption:
  """Parses words into a caption, the inverse of `text`.

  Raises:
    ValueError: the line is not in the language; the message names the clause.
  """
  clauses: list[list[str]] = [[]]
  for word in line.split():
    if word == "and":
      clauses.append([])
    else:
      clauses[-1].append(word)
  return tuple(_parse_clause(words, line) for words in clauses)


def _parse_clause(words: list[str], line: str) -> Clause:
  subject, rest = _parse_phrase(words, line)
  if not rest:
    return Clause(subject)
  fits = [
    link for link in _LENGTHS if link and rest[: _LENGTHS[link]] == link.split()
  ]
  if not fits:
    raise _error(words, line, f"a place or relation at {' '.join(rest)!r}")
  link = fits[0]  # no link begins with another
  rest = rest[_LENGTHS[link] :]
  if link in PLACES:
    if rest:
      raise _error(words, line, f"nothing after {link!r}")
    return Clause(subject, link)
  target, rest = _parse_phrase(rest, line)
  if rest:
    raise _error(words, line, f"nothing after the second phrase ({rest})")
  return Clause(subject, link, target)


def _parse_phrase(words: list[str], line: str) -> tuple[Phrase, list[str]]:
  count = _WORD_COUNTS.get(words[0]) if words else None
  if count is None:
    raise _error(words, line, f"one of {', '.join(_WORD_COUNTS)}")
  size = words[1] if len(words) > 1 and words[1] in SIZES else ""
  place = 2 if size else 1
  names = _NAMES if count == 1 else _PLURALS
  if len(words) <= place or words[place] not in names:
    raise _error(words, line, f"one of {', '.join(names)}")
  return Phrase(count, size, names[words[place]]), words[place + 1 :]


def _error(words: list[str], line: str, expected: str) -> ValueError:
  return ValueError(
    f"caption clause {' '.join(words)!r}: must have {expected}; got {line!r}. "
    "see the grammar at the top of fs_jax/data/datasets/scenes/grammar.py"
  )
