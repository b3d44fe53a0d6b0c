import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers

from fs_jax import config
from fs_jax.data import tokenizer

KINDS = ("word", "wordpiece", "bpe")
TEXTS = (
  "A small fox left of two big cars.",
  "two foxes, and a house in the top left",
  "three penguins above a rainbow",
  "une forêt Été",
)


def make(kind="word", texts=TEXTS, **fields):
  fields = {"vocabulary": 200, "length": 12} | fields
  return tokenizer.train(texts, config.Tokens(kind=kind, **fields))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_bos_tokens_eos_padding_and_come_back(kind):
  tok = make(kind, length=40)
  rows = tok.encode(TEXTS)
  assert rows.dtype == np.int32 and rows.shape == (4, 40)
  assert (tok.pad, tok.unknown, tok.bos, tok.eos) == (0, 1, 2, 3)
  for row, text in zip(rows, TEXTS, strict=True):
    n = int((row != tok.pad).sum())
    assert row[0] == tok.bos and row[n - 1] == tok.eos
    assert (row[n:] == tok.pad).all()
    assert tok.unknown not in row
    assert not {tok.bos, tok.eos} & set(row[1 : n - 1].tolist())
    words = tok.words(row)
    assert len(words) == n and words[0] == "<s>" and words[-1] == "</s>"
    back = tok.decode(row[None])[0]
    assert back.replace(" ", "") == tok.normalise(text).replace(" ", "")
  assert rows.max() < tok.vocab_size <= 200
  assert tok.encode([]).shape == (0, 40)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_row_keeps_eos(kind):
  tok = make(kind, length=5)
  (row,) = tok.encode(["a small fox left of two big cars"])
  assert row[0] == tok.bos and row[-1] == tok.eos and tok.pad not in row
  full = make(kind, length=30).encode(["a small fox left of two big cars"])[0]
  assert row[:4].tolist() == full[:4].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_typed_special_tokens_are_text(kind):
  tok = make(kind, length=30)
  (row,) = tok.encode(["a fox </s> <s> <pad> a house"])
  assert (row == tok.eos).sum() == 1 and (row == tok.bos).sum() == 1
  n = int((row != tok.pad).sum())
  assert tok.pad not in row[:n]


_HASHES = """
import json, sys
from fs_jax import config
from fs_jax.data import tokenizer
texts = json.load(sys.stdin)
for kind in ("word", "wordpiece", "bpe"):
  cfg = config.Tokens(kind=kind, vocabulary=300)
  print(tokenizer.train(texts, cfg).hash)
"""


def test_same_texts_give_the_same_hash_in_any_process_and_order():
  rng = np.random.default_rng(0)
  letters = np.array(list("abcdefghijklmnop"))
  words = ["".join(rng.choice(letters, rng.integers(1, 8))) for _ in range(300)]
  texts = [" ".join(rng.choice(words, 8)) for _ in range(150)]
  outputs = set()
  for order in (texts, texts[::-1], texts):
    done = subprocess.run(
      [sys.executable, "-c", _HASHES],
      input=json.dumps(order),
      capture_output=True,
      text=True,
      check=True,
      env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    outputs.add(done.stdout)
  assert len(outputs) == 1
  assert len(set(outputs.pop().split())) == 3


def test_hash_tells_length_case_and_vocabulary_apart():
  hashes = {
    make().hash,
    make(length=11).hash,
    make(lowercase=False).hash,
    make(vocabulary=12).hash,
  }
  assert len(hashes) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowercase", [True, False])
def test_save_and_load(kind, lowercase, tmp_path):
  tok = make(kind, lowercase=lowercase)
  path = tmp_path / "new" / "tokenizer.json"
  tok.save(path)
  tok.save(path)  # over the old one
  assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
  again = tokenizer.load(path)
  assert again.hash == tok.hash
  assert again.length == 12 and again.lowercase == lowercase
  np.testing.assert_array_equal(again.encode(TEXTS), tok.encode(TEXTS))


def test_normalise():
  tok = make()
  assert tok.normalise("  A\tcafe\u0301 \n  É ") == "a caf\u00e9 é"
  assert make(lowercase=False).normalise(" A  É") == "A É"
  for text in ("İstanbul", "ΣΑΣ", "ǅ a\u0307"):
    once = tok.normalise(text)
    assert tok.normalise(once) == once


def test_word_vocabulary_is_the_most_frequent_with_ties_sorted():
  tok = make(texts=["b b a c c", "d a"], vocabulary=8)
  row = [tok.bos, 4, 5, 6, 7, tok.eos]
  assert tok.words(np.array(row)) == ["<s>", "a", "b", "c", "d", "</s>"]
  tok = make(texts=["z z a b c d e f g"], vocabulary=8)
  assert tok.unknown_words("z a b c d e") == ["d", "e"]


@pytest.mark.parametrize("kind", KINDS)
def test_check_query(kind):
  tok = make(kind)
  assert tok.check_query("Two foxes") == []
  assert tok.check_query("a 猫 fox 猫 犬") == ["猫", "犬"]
  for bad, rule in [
    ("", "must hold a word"),
    (" \n ", "must hold a word"),
    ("a" * 2001, "got 2,001 characters"),
    ("猫 犬", "must hold a word of the training captions"),
  ]:
    with pytest.raises(ValueError, match=rule):
      tok.check_query(bad)


def test_hints_are_spelled_alike():
  with pytest.raises(ValueError, match="for example: penguins"):
    make().check_query("penguin")


def test_errors_of_files(tmp_path):
  with pytest.raises(ValueError, match="does not exist"):
    tokenizer.load(tmp_path / "no.json")
  (tmp_path / "bad.json").write_text("{}")
  with pytest.raises(ValueError, match=r"tokenizer\.json: must be one"):
    tokenizer.load(tmp_path / "bad.json")
  with pytest.raises(ValueError, match="needs captions"):
    tokenizer.train(["", " "], config.Tokens())
  with pytest.raises(ValueError, match="must be a tokenizer"):
    tokenizer.make([], config.Tokens(file=str(tmp_path / "bad.json")))


def test_a_foreign_file_is_adopted(tmp_path):
  vocabulary = ["a", "[UNK]", "fox", "[CLS]", "[SEP]", "##es", "[PAD]"]
  foreign = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(
      {t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]"
    )
  )
  foreign.normalizer = tokenizers.normalizers.BertNormalizer()
  foreign.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  foreign.decoder = tokenizers.decoders.WordPiece()
  foreign.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
  path = tmp_path / "foreign.json"
  foreign.save(str(path))
  tok = tokenizer.make((), config.Tokens(length=8, file=str(path)))
  (row,) = tok.encode(["A foxes bird"])
  assert row.tolist() == [2, 4, 5, 6, 1, 3, 0, 0]
  assert tok.decode(row[None]) == ["a foxes"]
  assert tok.vocab_size == len(vocabulary)
  del vocabulary[-1]
  bare = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]"
    )
  )
  bare.save(str(path))
  with pytest.raises(ValueError, match="needs a token for <pad>"):
    tokenizer.make((), config.Tokens(file=str(path)))
