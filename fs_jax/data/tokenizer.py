"""Strings to integers and back: the only module that knows `tokenizers`.

A tokenizer is one tokenizer.json: normalisation, vocabulary, length and the
BOS and EOS around every row are all in it. Ids 0 to 3 are always padding,
unknown, BOS and EOS. The same texts give the same file and so the same hash,
which is part of every contract.
"""

import collections
import difflib
import functools
import hashlib
import itertools
import json
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from fs_jax import config

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")  # ids 0 to 3
MAX_QUERY = 2000  # characters
# What tokenizers from elsewhere call the same four.
_NAMES = (
  ("<pad>", "[PAD]"),
  ("<unk>", "[UNK]"),
  ("<s>", "<bos>", "[CLS]"),
  ("</s>", "<eos>", "[SEP]"),
)
_PHRASE_TEXTS = 4_000  # captions that phrases are counted in, at most
_ALPHABET = 1000  # characters that wordpiece and bpe keep; others are unknown
_SUBWORD = "##"  # in front of a wordpiece that continues a word
_WORD = "▁"  # in front of a bpe token that starts a word


class Tokenizer:
  """Rows of L ids: BOS, tokens, EOS, padding. Made by `make` or `load`."""

  pad, unknown, bos, eos = range(4)

  def __init__(self, text: str):
    """text: the tokenizer.json that `Tokenizer.save` wrote.

    Raises:
      ValueError: not such a file.
    """
    try:
      self._json = json.loads(text)
      self._tok = tokenizers.Tokenizer.from_str(text)
      self.length = int(self._json["truncation"]["max_length"])  # L
      first = self._json["normalizer"]["normalizers"][0]["type"]
    except Exception as error:  # the Rust side raises plain Exception
      raise ValueError(
        "tokenizer.json: must be one that fs_jax wrote; got "
        f"{type(error).__name__}: {error}. train one, or name a foreign file "
        "in config.tokens.file"
      ) from None
    self.lowercase = first == "Lowercase"
    # "</s>" typed by a user is text, never the EOS of the row.
    self._tok.encode_special_tokens = True

  @property
  def vocab_size(self) -> int:
    """V, with padding, unknown, BOS and EOS."""
    return self._tok.get_vocab_size()

  @functools.cached_property
  def hash(self) -> str:
    """SHA-256 of the canonical tokenizer.json, the length and the case.

    Of the text as it was first written: a newer `tokenizers` may spell the
    same file differently.
    """
    parts = [_canonical(self._json), str(self.length), str(self.lowercase)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

  def save(self, path: str | os.PathLike) -> None:
    """Writes tokenizer.json under a temporary name, then renames it."""
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    temporary.write_text(_canonical(self._json) + "\n")
    temporary.replace(target)

  def normalise(self, text: str) -> str:
    """What the model sees of a string; equal results get one text_id."""
    return self._tok.normalizer.normalize_str(text)

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """n strings -> int32 [n, L]; longer ones are cut, EOS is kept."""
    rows: np.ndarray = np.full((len(texts), self.length), self.pad, np.int32)
    for row, encoding in zip(
      rows, self._tok.encode_batch_fast(list(texts)), strict=True
    ):
      row[:] = encoding.ids
    return rows

  def decode(self, rows: np.ndarray) -> list[str]:
    """int [n, L] -> n strings, without BOS, EOS and padding."""
    return self._tok.decode_batch(np.asarray(rows).tolist())

  def words(self, row: np.ndarray) -> list[str]:
    """Token strings of int [L], position by position, up to the padding."""
    ids = (int(i) for i in row if i != self.pad)
    return [self._tok.id_to_token(i) or SPECIAL[self.unknown] for i in ids]

  def unknown_words(self, text: str) -> list[str]:
    """Words that hold a token the vocabulary lacks, in order, each once."""
    unknown = []
    for word in self._split(text):
      ids = [token.id for token in self._tok.model.tokenize(word)]
      if self.unknown in ids and word not in unknown:
        unknown.append(word)
    return [word.removeprefix(_WORD) for word in unknown]

  def check_query(self, text: str) -> list[str]:
    """Unknown words of a query, which the model cannot tell apart.

    Raises:
      ValueError: an empty query, one over 2,000 characters, or one of which
        no word is known.
    """
    if len(text) > MAX_QUERY:
      raise ValueError(
        f"query: at most {MAX_QUERY:,} characters; got {len(text):,} "
        "characters. shorten it"
      )
    words = self._split(text)
    if not words:
      raise ValueError(
        f"query: must hold a word; got {text!r}. say what you are looking for"
      )
    unknown = self.unknown_words(text)
    if len(unknown) == len({word.removeprefix(_WORD) for word in words}):
      hints = ", ".join(self._hints(unknown))
      raise ValueError(
        "query: must hold a word of the training captions; got "
        f"{text!r}. words known are, for example: {hints}"
      )
    return unknown

  def _split(self, text: str) -> list[str]:
    """Normalised words and punctuation marks."""
    pieces = self._tok.pre_tokenizer.pre_tokenize_str(self.normalise(text))
    return [piece for piece, _ in pieces if piece.strip(_WORD)]

  def _hints(self, unknown: list[str], count: int = 5) -> list[str]:
    """Known words: those spelled alike, then the most frequent long ones."""
    vocabulary = self._tok.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if any(len(token) > 1 and token[0] == _WORD for token in tokens):
      tokens = [token[1:] for token in tokens if token[0] == _WORD]
    whole = [word for word in tokens if len(word) > 2 and word.isalpha()]
    alike = [
      match
      for word in unknown[:count]
      for match in difflib.get_close_matches(word, whole, n=2)
    ]
    return list(dict.fromkeys(alike + whole))[:count]


def make(texts: Iterable[str], cfg: config.Tokens) -> Tokenizer:
  """The tokenizer of a run: `cfg.file` if it names one, else trained."""
  return adopt(cfg) if cfg.file else train(texts, cfg)


def load(path: str | os.PathLike) -> Tokenizer:
  """Reads what `Tokenizer.save` wrote.

  Raises:
    ValueError: no such file, or not a tokenizer.json of this framework.
  """
  return Tokenizer(_read(path))


def train(texts: Iterable[str], cfg: config.Tokens) -> Tokenizer:
  """Learns a vocabulary; the order of the texts does not matter.

  Raises:
    ValueError: no text holds a word.
  """
  normaliser = _normaliser(cfg)
  # Sorted, because trainers break ties by the order they meet words in.
  texts = sorted(normaliser.normalize_str(text) for text in texts)
  if not any(texts):
    raise ValueError(
      f"tokenizer: needs captions to learn words from; got {len(texts)} "
      "without any. check config.data.train"
    )
  match cfg.kind:
    case "word":
      tok = _train_word(texts, cfg)
    case "phrase":
      tok = _train_phrase(texts, cfg)
    case "wordpiece":
      tok = _train_wordpiece(texts, cfg)
    case "bpe":
      tok = _train_bpe(texts, cfg)
  tok.normalizer = normaliser
  return _finish(tok, cfg)


def adopt(cfg: config.Tokens) -> Tokenizer:
  """The vocabulary of a foreign tokenizer.json, with our rows around it.

  Its own normaliser runs after ours. Ids are permuted so that its padding,
  unknown, BOS and EOS become 0 to 3: pre-trained embeddings do not fit as
  they are.

  Raises:
    ValueError: no such file, or one whose model is not a plain vocabulary
      with those four tokens.
  """
  try:
    tree = json.loads(_read(cfg.file))
    model, vocabulary = tree["model"], dict(tree["model"]["vocab"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"tokens.file: must be a tokenizer.json of type WordLevel, WordPiece or "
      f"BPE; got {cfg.file!r} ({type(error).__name__}: {error}). train one: "
      "leave tokens.file empty"
    ) from None
  vocabulary |= {t["content"]: t["id"] for t in tree.get("added_tokens", [])}
  special = []
  for ours, names in zip(SPECIAL, _NAMES, strict=True):
    found = [name for name in names if name in vocabulary]
    if not found:
      raise ValueError(
        f"tokens.file: needs a token for {ours}, one of {list(names)}; got "
        f"none in {cfg.file!r}. use another file"
      )
    special.append(found[0])
  rest = [
    t
    for t in sorted(vocabulary, key=vocabulary.__getitem__)
    if t not in special
  ]
  model["vocab"] = {t: i for i, t in enumerate([*SPECIAL, *rest])}
  model["unk_token"] = SPECIAL[1]
  tree |= {"added_tokens": [], "post_processor": None}
  tok = tokenizers.Tokenizer.from_str(json.dumps(tree))
  theirs = [tok.normalizer] if tok.normalizer else []
  tok.normalizer = normalizers.Sequence([*_normalisers(cfg), *theirs])
  if tok.pre_tokenizer is None:
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
  return _finish(tok, cfg)


def _normalisers(cfg: config.Tokens) -> list[Any]:
  lower = [normalizers.Lowercase()] if cfg.lowercase else []
  spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
  # NFC after the case: lower-casing may leave a mark to compose.
  return [*lower, normalizers.NFC(), spaces, normalizers.Strip()]


def _normaliser(cfg: config.Tokens) -> normalizers.Normalizer:
  return normalizers.Sequence(_normalisers(cfg))


def _finish(tok: tokenizers.Tokenizer, cfg: config.Tokens) -> Tokenizer:
  """Rows of L: BOS and EOS around the tokens, then padding."""
  tok.add_special_tokens(list(SPECIAL))  # in the vocabulary: they keep 0 to 3
  _, _, bos, eos = SPECIAL
  tok.post_processor = processors.TemplateProcessing(
    single=f"{bos} $A {eos}",
    special_tokens=[(bos, Tokenizer.bos), (eos, Tokenizer.eos)],
  )
  tok.enable_truncation(cfg.length)
  tok.enable_padding(
    length=cfg.length, pad_id=Tokenizer.pad, pad_token=SPECIAL[0]
  )
  return Tokenizer(tok.to_str())


def _train_word(
  texts: list[str],
  cfg: config.Tokens,
  split: pre_tokenizers.PreTokenizer | None = None,
) -> tokenizers.Tokenizer:
  """The most frequent words, and punctuation marks, as they are."""
  split = split or pre_tokenizers.Whitespace()
  counts = collections.Counter(
    word for text in texts for word, _ in split.pre_tokenize_str(text)
  )
  for token in SPECIAL:
    del counts[token]
  ordered = sorted(counts, key=lambda word: (-counts[word], word))
  words = [*SPECIAL, *ordered[: cfg.vocabulary - len(SPECIAL)]]
  vocabulary = {word: i for i, word in enumerate(words)}
  tok = tokenizers.Tokenizer(models.WordLevel(vocabulary, SPECIAL[1]))
  tok.pre_tokenizer = split
  return tok


def _train_phrase(texts: list[str], cfg: config.Tokens) -> tokenizers.Tokenizer:
  """Words, and the phrases that captions repeat, as one token each.

  Pairs of neighbours are merged by frequency, as BPE merges characters: "in
  the", then "in the top". Captions get shorter by what carries least, and a
  decoder pays for every token.
  """
  split = pre_tokenizers.Whitespace()
  lines = [
    [word for word, _ in split.pre_tokenize_str(text)]
    for text in texts[:: max(1, len(texts) // _PHRASE_TEXTS)]
  ]
  phrases: list[str] = []
  for _ in range(cfg.phrases):
    pairs = collections.Counter(
      pair for line in lines for pair in itertools.pairwise(line)
    )
    if not pairs:
      break
    best = min(pairs, key=lambda pair: (-pairs[pair], pair))
    phrases.append(" ".join(best))
    lines = [_merged(line, best) for line in lines]
  longest = sorted(phrases, key=lambda p: (-len(p.split()), p))
  either = "|".join(re.escape(p) for p in longest)
  pattern = tokenizers.Regex(rf"\b(?:{either})\b|\w+|[^\w\s]+")
  tok = _train_word(
    texts, cfg, pre_tokenizers.Split(pattern, "removed", invert=True)
  )
  return tok


def _merged(line: list[str], pair: tuple[str, str]) -> list[str]:
  out: list[str] = []
  for word in line:
    if out and (out[-1], word) == pair:
      out[-1] = f"{out[-1]} {word}"
    else:
      out.append(word)
  return out


def _train_wordpiece(
  texts: list[str], cfg: config.Tokens
) -> tokenizers.Tokenizer:
  """Frequent pieces of words; "##" in front of one that continues a word."""
  split = pre_tokenizers.Whitespace()
  inner = {
    character
    for text in texts
    for word, _ in split.pre_tokenize_str(text)
    for character in word[1:]
  }
  alphabet = _alphabet(texts, cfg.vocabulary // 4)
  # The trainer numbers continuing characters in the order of a hash table,
  # another one in each process, and breaks ties by number. Named up front,
  # they have numbers of their own.
  pieces = [_SUBWORD + c for c in alphabet if c in inner]
  learner = tokenizers.Tokenizer(models.WordPiece(unk_token=SPECIAL[1]))
  learner.pre_tokenizer = split
  trainer = trainers.WordPieceTrainer(
    vocab_size=cfg.vocabulary,
    special_tokens=[*SPECIAL, *pieces],
    initial_alphabet=alphabet,
    limit_alphabet=len(alphabet),
    continuing_subword_prefix=_SUBWORD,
    show_progress=False,
  )
  learner.train_from_iterator(texts, trainer)
  vocabulary = learner.get_vocab()
  tok = tokenizers.Tokenizer(
    models.WordPiece(
      vocabulary, unk_token=SPECIAL[1], continuing_subword_prefix=_SUBWORD
    )
  )
  tok.pre_tokenizer = split
  tok.decoder = decoders.WordPiece(prefix=_SUBWORD)
  return tok


def _train_bpe(texts: list[str], cfg: config.Tokens) -> tokenizers.Tokenizer:
  """Merges of frequent neighbours; "▁" in front of what starts a word."""
  tok = tokenizers.Tokenizer(models.BPE(unk_token=SPECIAL[1]))
  tok.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace(_WORD)]
  )
  tok.decoder = decoders.Metaspace(_WORD)
  alphabet = _alphabet([_WORD, *texts], cfg.vocabulary // 4)
  trainer = trainers.BpeTrainer(
    vocab_size=cfg.vocabulary,
    special_tokens=list(SPECIAL),
    initial_alphabet=alphabet,
    limit_alphabet=len(alphabet),
    show_progress=False,
  )
  tok.train_from_iterator(texts, trainer)
  return tok


def _alphabet(texts: list[str], limit: int) -> list[str]:
  """The most frequent characters, ties in the order of their code points."""
  counts = collections.Counter(c for text in texts for c in text)
  del counts[" "]
  ordered = sorted(counts, key=lambda c: (-counts[c], c))
  return ordered[: min(limit, _ALPHABET)]


def _read(path: str | os.PathLike) -> str:
  try:
    return epath.Path(path).read_text()
  except FileNotFoundError:
    raise ValueError(
      f"tokenizer: must be a file; got {os.fspath(path)!r}, which does not "
      "exist. check the path"
    ) from None


def _canonical(tree: Any) -> str:
  return json.dumps(tree, sort_keys=True, separators=(",", ":"))
