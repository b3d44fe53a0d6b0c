"""Strings to integers and back.

A tokenizer is one tokenizer.json, with normalisation, vocabulary, length and
the BOS and EOS around every row. Ids 0 to 3 are always padding, unknown, BOS
and EOS. The same texts give the same file and so the same hash, which is part
of every contract. Only this module and `vocabulary` know `tokenizers`.
"""

import difflib
import functools
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from tokenizers import normalizers, pre_tokenizers, processors

from fs_jax import config
from fs_jax.data import vocabulary

SPECIAL = vocabulary.SPECIAL
MAX_QUERY = 2000  # characters
# Names of the same four in tokenizers from elsewhere.
_NAMES = (
  ("<pad>", "[PAD]"),
  ("<unk>", "[UNK]"),
  ("<s>", "<bos>", "[CLS]"),
  ("</s>", "<eos>", "[SEP]"),
)
_START = vocabulary.BPE_START


class Tokenizer:
  """Encodes strings as rows of L ids: BOS, tokens, EOS, padding.

  `make` and `load` return one.
  """

  pad, unknown, bos, eos = range(4)

  def __init__(self, text: str):
    """Args:
      text: the tokenizer.json that `Tokenizer.save` wrote.

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
    # "</s>" typed by a user is text, never the row's EOS.
    self._tok.encode_special_tokens = True

  @property
  def vocab_size(self) -> int:
    """V, including padding, unknown, BOS and EOS."""
    return self._tok.get_vocab_size()

  @functools.cached_property
  def hash(self) -> str:
    """SHA-256 of the canonical tokenizer.json, the length and the case.

    It is taken of the text as first written: a newer `tokenizers` may spell the
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
    """The string as the model sees it; equal results get one text_id."""
    return self._tok.normalizer.normalize_str(text)

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """n strings -> int32 [n,L]; longer ones are cut before their EOS."""
    rows: np.ndarray = np.full((len(texts), self.length), self.pad, np.int32)
    for row, encoding in zip(
      rows, self._tok.encode_batch_fast(list(texts)), strict=True
    ):
      row[:] = encoding.ids
    return rows

  def decode(self, rows: np.ndarray) -> list[str]:
    """int [n,L] -> n strings, without BOS, EOS and padding."""
    return self._tok.decode_batch(np.asarray(rows).tolist())

  def words(self, row: np.ndarray) -> list[str]:
    """int [L] -> the tokens as strings, one a position, up to the padding."""
    ids = (int(i) for i in row if i != self.pad)
    return [self._tok.id_to_token(i) or SPECIAL[self.unknown] for i in ids]

  def unknown_words(self, text: str) -> list[str]:
    """Words with a token that the vocabulary lacks, in order, each once."""
    unknown = []
    for word in self._split(text):
      ids = [token.id for token in self._tok.model.tokenize(word)]
      if self.unknown in ids and word not in unknown:
        unknown.append(word)
    return [word.removeprefix(_START) for word in unknown]

  def check_query(self, text: str) -> list[str]:
    """Returns a query's unknown words, which the model cannot tell apart.

    Raises:
      ValueError: the query is empty, over 2,000 characters, or has no known
        word.
    """
    if len(text) > MAX_QUERY:
      raise ValueError(
        f"query: at most {MAX_QUERY:,} characters; got {len(text):,} "
        f"characters. shorten it by {len(text) - MAX_QUERY:,}"
      )
    words = self._split(text)
    if not words:
      raise ValueError(
        f"query: must hold a word; got {text!r}. say what you are looking for"
      )
    unknown = self.unknown_words(text)
    if len(unknown) == len({word.removeprefix(_START) for word in words}):
      hints = ", ".join(self._hints(unknown))
      raise ValueError(
        "query: must hold a word of the training captions; got "
        f"{text!r}. words known are, for example: {hints}"
      )
    return unknown

  def _split(self, text: str) -> list[str]:
    """Normalised words and punctuation marks."""
    pieces = self._tok.pre_tokenizer.pre_tokenize_str(self.normalise(text))
    return [piece for piece, _ in pieces if piece.strip(_START)]

  def _hints(self, unknown: list[str], count: int = 5) -> list[str]:
    """Known words: those spelled alike, then the most frequent longer ones."""
    vocabulary = self._tok.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if any(len(token) > 1 and token[0] == _START for token in tokens):
      tokens = [token[1:] for token in tokens if token[0] == _START]
    whole = [word for word in tokens if len(word) > 2 and word.isalpha()]
    alike = [
      match
      for word in unknown[:count]
      for match in difflib.get_close_matches(word, whole, n=2)
    ]
    return list(dict.fromkeys(alike + whole))[:count]


def make(texts: Iterable[str], cfg: config.Tokens) -> Tokenizer:
  """Makes a run's tokenizer: adopts `cfg.file`, or trains one on `texts`."""
  return adopt(cfg) if cfg.file else train(texts, cfg)


def load(path: str | os.PathLike) -> Tokenizer:
  """Reads what `Tokenizer.save` wrote.

  Raises:
    ValueError: no such file, or not a tokenizer.json that fs_jax wrote.
  """
  return Tokenizer(_read(path))


def train(texts: Iterable[str], cfg: config.Tokens) -> Tokenizer:
  """Learns a vocabulary; the order of the texts does not matter.

  Raises:
    ValueError: no text holds a word.
  """
  normaliser = normalizers.Sequence(_normalisers(cfg))
  texts = [normaliser.normalize_str(text) for text in texts]
  if not any(texts):
    raise ValueError(
      f"tokenizer: needs captions to learn words from; got {len(texts)} "
      "without any. check config.data.train"
    )
  tok = vocabulary.learn(texts, cfg)
  tok.normalizer = normaliser
  return _finish(tok, cfg)


def adopt(cfg: config.Tokens) -> Tokenizer:
  """Takes the vocabulary of a foreign tokenizer.json.

  Its own normaliser runs after ours. Ids are permuted so that its padding,
  unknown, BOS and EOS become 0 to 3: pre-trained embeddings must be permuted
  too.

  Raises:
    ValueError: no such file, or its model is not a plain vocabulary with those
      four tokens.
  """
  try:
    tree = json.loads(_read(cfg.file))
    model, ids = tree["model"], dict(tree["model"]["vocab"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"tokens.file: must be a tokenizer.json of type WordLevel, WordPiece or "
      f"BPE; got {cfg.file!r} ({type(error).__name__}: {error}). train one: "
      "leave tokens.file empty"
    ) from None
  ids |= {t["content"]: t["id"] for t in tree.get("added_tokens", [])}
  special = []
  for ours, names in zip(SPECIAL, _NAMES, strict=True):
    present = [name for name in names if name in ids]
    if not present:
      raise ValueError(
        f"tokens.file: needs a token for {ours}, one of {list(names)}; got "
        f"none in {cfg.file!r}. add one to its vocabulary, or train one: leave "
        "tokens.file empty"
      )
    special.append(present[0])
  rest = [t for t in sorted(ids, key=ids.__getitem__) if t not in special]
  model["vocab"] = {t: i for i, t in enumerate([*SPECIAL, *rest])}
  model["unk_token"] = SPECIAL[1]
  tree |= {"added_tokens": [], "post_processor": None}
  tok = tokenizers.Tokenizer.from_str(json.dumps(tree))
  theirs = [tok.normalizer] if tok.normalizer else []
  tok.normalizer = normalizers.Sequence([*_normalisers(cfg), *theirs])
  if tok.pre_tokenizer is None:
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
  return _finish(tok, cfg)


def _normalisers(cfg: config.Tokens) -> list[normalizers.Normalizer]:
  lower = [normalizers.Lowercase()] if cfg.lowercase else []
  spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
  # NFC after lower-casing, which may leave a mark to compose.
  return [*lower, normalizers.NFC(), spaces, normalizers.Strip()]


def _finish(tok: tokenizers.Tokenizer, cfg: config.Tokens) -> Tokenizer:
  """Adds what makes rows of L: BOS and EOS around the tokens, then padding."""
  tok.add_special_tokens(list(SPECIAL))  # they are in it, and keep 0 to 3
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


def _read(path: str | os.PathLike) -> str:
  try:
    return epath.Path(path).read_text()
  except FileNotFoundError:
    raise ValueError(
      f"tokenizer: must be a file; got {os.fspath(path)!r}, which does not "
      "exist. give the path of a tokenizer.json"
    ) from None


def _canonical(tree: dict[str, Any]) -> str:
  """JSON text that does not depend on the order of keys."""
  return json.dumps(tree, sort_keys=True, separators=(",", ":"))
