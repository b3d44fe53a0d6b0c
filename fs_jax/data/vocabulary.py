"""Learns a vocabulary from texts: words, phrases, wordpieces or BPE.

The same texts give the same vocabulary, in any order and in any process. Texts
are normalised already; `tokenizer` adds the normaliser, BOS, EOS and padding.
"""

import collections
import itertools
import re

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from fs_jax import config

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")  # ids 0 to 3
BPE_START = "▁"  # prefix of a bpe token that starts a word
_CONTINUES = "##"  # prefix of a wordpiece that continues a word
_PHRASE_TEXTS = 4_000  # captions that phrases are counted in, at most
_ALPHABET = 1000  # characters that wordpiece and bpe keep; others are unknown


def learn(texts: list[str], cfg: config.Tokens) -> tokenizers.Tokenizer:
  """Learns a vocabulary of the kind `cfg.kind` from normalised texts."""
  # Sorted, because trainers break ties by the order they meet words in.
  texts = sorted(texts)
  match cfg.kind:
    case "word":
      return _learn_words(texts, cfg)
    case "phrase":
      return _learn_phrases(texts, cfg)
    case "wordpiece":
      return _learn_wordpieces(texts, cfg)
    case "bpe":
      return _learn_bpe(texts, cfg)


def _learn_words(
  texts: list[str],
  cfg: config.Tokens,
  split: pre_tokenizers.PreTokenizer | None = None,
) -> tokenizers.Tokenizer:
  """The most frequent words and punctuation marks."""
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


def _learn_phrases(
  texts: list[str], cfg: config.Tokens
) -> tokenizers.Tokenizer:
  """Words, and the phrases that captions repeat, as one token each.

  The most frequent pairs of neighbours are merged, as BPE merges characters:
  "in the", then "in the top". This shortens captions where they say least; a
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
    lines = [_merge(line, best) for line in lines]
  longest = sorted(phrases, key=lambda p: (-len(p.split()), p))
  either = "|".join(re.escape(p) for p in longest)
  pattern = tokenizers.Regex(rf"\b(?:{either})\b|\w+|[^\w\s]+")
  phrase_split = pre_tokenizers.Split(pattern, "removed", invert=True)
  return _learn_words(texts, cfg, phrase_split)


def _merge(line: list[str], pair: tuple[str, str]) -> list[str]:
  out: list[str] = []
  for word in line:
    if out and (out[-1], word) == pair:
      out[-1] = f"{out[-1]} {word}"
    else:
      out.append(word)
  return out


def _learn_wordpieces(
  texts: list[str], cfg: config.Tokens
) -> tokenizers.Tokenizer:
  """Frequent pieces of words; "##" precedes one that continues a word."""
  split = pre_tokenizers.Whitespace()
  inner = {
    character
    for text in texts
    for word, _ in split.pre_tokenize_str(text)
    for character in word[1:]
  }
  alphabet = _alphabet(texts, cfg.vocabulary // 4)
  # The trainer numbers continuing characters in the order of a hash table,
  # which differs between processes, and breaks ties by number. Listed up front,
  # they have fixed numbers.
  pieces = [_CONTINUES + c for c in alphabet if c in inner]
  learner = tokenizers.Tokenizer(models.WordPiece(unk_token=SPECIAL[1]))
  learner.pre_tokenizer = split
  trainer = trainers.WordPieceTrainer(
    vocab_size=cfg.vocabulary,
    special_tokens=[*SPECIAL, *pieces],
    initial_alphabet=alphabet,
    limit_alphabet=len(alphabet),
    continuing_subword_prefix=_CONTINUES,
    show_progress=False,
  )
  learner.train_from_iterator(texts, trainer)
  vocabulary = learner.get_vocab()
  tok = tokenizers.Tokenizer(
    models.WordPiece(
      vocabulary, unk_token=SPECIAL[1], continuing_subword_prefix=_CONTINUES
    )
  )
  tok.pre_tokenizer = split
  tok.decoder = decoders.WordPiece(prefix=_CONTINUES)
  return tok


def _learn_bpe(texts: list[str], cfg: config.Tokens) -> tokenizers.Tokenizer:
  """Merges of frequent neighbours; "▁" precedes what starts a word."""
  tok = tokenizers.Tokenizer(models.BPE(unk_token=SPECIAL[1]))
  tok.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace(BPE_START)]
  )
  tok.decoder = decoders.Metaspace(BPE_START)
  alphabet = _alphabet([BPE_START, *texts], cfg.vocabulary // 4)
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
