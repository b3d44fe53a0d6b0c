"""Slow as a judge: scores pairs of a stored memory and a text.

One jitted function scores a block of pairs. A block reads each of its texts
once; each pair costs the decoder's crossed layers over its memory. Blocks are
padded to a small grid of shapes that does not depend on the number of queries
or candidates: once the grid is compiled, no query compiles anything.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fs_jax import types
from fs_jax.gallery import memories
from fs_jax.machine import hardware
from fs_jax.models import build
from fs_jax.models import slow as slow_models
from fs_jax.models.text import PAD
from fs_jax.runs import stages

# Pairs scored at once: a working set that fits caches and keeps a TPU busy.
PAIRS = 256
SIZES = (PAIRS, 64, 12, 4)  # pairs of a block; ten candidates are usual
# Texts are cut to a multiple of this many tokens: most are much shorter than
# the longest, and padding costs as much as words.
LENGTHS = 4
Progress = Callable[[int], None]  # called with the number of pairs done


class Shape(NamedTuple):
  """The shape that a block is padded to. Each compiles one program."""

  pairs: int
  texts: int
  length: int


class Block(NamedTuple):
  """Pairs that are scored at once. Their texts have one length."""

  queries: Int[np.ndarray, " P"]  # ascending
  columns: Int[np.ndarray, " P"]  # places in each query's list
  shape: Shape


class Scorer:
  """Scores any pairs of a gallery's row and a text by h(x, y), in nats.

  Args:
    run: a trained Slow.
    memories: the gallery's memories, encoded by the same parameters.
    pairs: pairs scored at once, at most; bounds memory.
  """

  def __init__(
    self, run: stages.Run, memories: memories.Memories, *, pairs: int = PAIRS
  ):
    self._params, self._store = run.params["slow"], memories
    self._length = run.cfg.tokens.length
    self._sizes = _sizes(pairs)
    model = build.slow_model(run.cfg, run.tokenizer.vocab_size)
    self._score = functools.partial(_score, model)

  def __len__(self) -> int:
    return len(self._store)

  def __call__(
    self,
    text: Int[np.ndarray, "Q L"],
    rows: Int[np.ndarray, "Q K"],
    progress: Progress | None = None,
  ) -> Float[np.ndarray, "Q K"]:
    """Scores each text with its own list of rows.

    Args:
      text: token rows.
      rows: each text's list; -1 pads.
      progress: called with the number of pairs done.

    Returns:
      Log-likelihoods; -inf where a row is -1.

    Raises:
      ValueError: a text longer than the model's longest.
    """
    text, rows = self._fit_width(text), np.asarray(rows)

    def scored() -> Iterator[tuple[Block, jax.Array]]:
      for block in _blocks(cut_lengths(text), rows.shape[1], self._sizes):
        memory = self._read(rows[block.queries, block.columns], block.shape)
        yield block, self._score_block(text, memory, block)

    h = _gather(rows.shape, scored(), progress)
    return np.where(rows >= 0, h, -np.inf)

  def score_all(
    self, text: Int[np.ndarray, "Q L"], progress: Progress | None = None
  ) -> Float[np.ndarray, "Q C"]:
    """Scores the whole gallery with each text, reading each memory once."""
    text = self._fit_width(text)
    lengths = cut_lengths(text)

    def scored() -> Iterator[tuple[Block, jax.Array]]:
      for start, stop, pairs in _pieces(len(self), self._sizes):
        rows = np.arange(start, stop)
        shapes = [Shape(pairs, 1, int(n)) for n in lengths]
        memory = jax.device_put(self._read(rows, shapes[0]))
        for query, shape in enumerate(shapes):
          block = Block(np.full(len(rows), query), rows, shape)
          yield block, self._score_block(text, memory, block)

    shape = (len(text), len(self))
    return _gather(shape, scored() if len(text) else iter(()), progress)

  def list_shapes(
    self, text: Int[np.ndarray, "Q L"], k: int | None = None
  ) -> set[Shape]:
    """Lists the shapes that scoring needs.

    Args:
      text: token rows.
      k: rows of each text's list; None for the whole gallery.
    """
    lengths = cut_lengths(self._fit_width(text))
    if k is not None:
      return {block.shape for block in _blocks(lengths, k, self._sizes)}
    pieces = {pairs for _, _, pairs in _pieces(len(self), self._sizes)}
    return {
      Shape(pairs, 1, int(n)) for pairs in pieces for n in np.unique(lengths)
    }

  def warm(self, shapes: Iterable[Shape] | None = None) -> None:
    """Compiles the programs of some shapes; of all that lists need if None."""
    if shapes is None:
      lengths = {
        min(n + LENGTHS, self._length) for n in range(0, self._length, LENGTHS)
      }
      shapes = [
        Shape(pairs, texts, length)
        for pairs in self._sizes
        for texts in _texts(pairs)
        for length in sorted(lengths)
      ]

    def run(shape: Shape) -> None:
      memory = self._read(np.zeros(0, np.int32), shape)
      words = np.full((shape.texts, shape.length), PAD, np.int32)
      which = np.zeros(shape.pairs, np.int32)
      self._score(self._params, memory, words, which).block_until_ready()

    # Tracing holds Python's lock but compiling does not, so threads help.
    cores = hardware.count_cores()
    with futures.ThreadPoolExecutor(min(cores, 8)) as pool:
      list(pool.map(run, shapes))

  def _fit_width(self, text: Int[np.ndarray, "Q L"]) -> Int[np.ndarray, "Q L"]:
    """Cuts or pads token rows to the length of the model's longest text."""
    text = np.asarray(text, np.int32)
    used = int((text != PAD).sum(axis=1).max(initial=0))
    if used > self._length:
      raise ValueError(
        f"text: must have at most {self._length} tokens; got {used}. encode "
        "it with the model's own tokenizer"
      )
    text = text[:, : self._length]
    return np.pad(text, ((0, 0), (0, self._length - text.shape[1])))

  def _read(self, rows: Int[np.ndarray, " P"], shape: Shape) -> types.Memory:
    """Reads the memories of rows, padded to a shape."""
    missing = shape.pairs - len(rows)
    return self._store.read(np.pad(rows, (0, missing), constant_values=-1))

  def _score_block(
    self, text: Int[np.ndarray, "Q L"], memory: types.Memory, block: Block
  ) -> Float[jax.Array, " P"]:
    """Starts to score a block; its first results are those of its pairs."""
    shape = block.shape
    some, which = np.unique(block.queries, return_inverse=True)
    words = text[some, : shape.length]
    words = np.pad(words, ((0, shape.texts - len(some)), (0, 0)), mode="edge")
    which = np.pad(which.astype(np.int32), (0, shape.pairs - len(which)))
    return self._score(self._params, memory, words, which)


def cut_lengths(text: Int[np.ndarray, "Q L"]) -> Int[np.ndarray, " Q"]:
  """The number of tokens of each text that Slow reads; the rest is padding."""
  used = (np.asarray(text) != PAD).sum(axis=1)
  cut = -(-np.maximum(used, 1) // LENGTHS) * LENGTHS
  return np.minimum(cut, text.shape[1])


def score_pairs(
  model: slow_models.Slow,
  params: types.Params,
  memory: types.Memory,
  text: types.Array,
  which: types.Array,
) -> Float[jax.Array, " P"]:
  """Scores P memories, each with one of T texts.

  Args:
    model: Slow.
    params: Slow's parameters.
    memory: memories of P visuals.
    text: int32 [T,L], each read once.
    which: int32 [P], the text of each pair.
  """
  states = build.apply(model, params, text, method="read")
  each, words = (
    jnp.take(x, which, axis=0, mode="clip")[:, None] for x in (states, text)
  )
  return build.apply(model, params, memory, each, words, method="score")[:, 0]


# Compiled once for all scorers of equal models; a study opens several.
_score = jax.jit(score_pairs, static_argnums=0)


def _sizes(pairs: int) -> tuple[int, ...]:
  """Sizes of blocks of at most `pairs`, the largest first."""
  if pairs < 1:
    raise ValueError(f"pairs: must be >= 1; got {pairs}. pass {PAIRS}")
  return pairs, *(size for size in SIZES if size < pairs)


def _texts(pairs: int) -> tuple[int, ...]:
  """The numbers of texts that a block of pairs is padded to, ascending.

  A sixth of the pairs is enough for lists of at least a few candidates, and
  cheap to read.
  """
  return (pairs // 6, pairs) if pairs >= 6 else (pairs,)


def _pieces(
  count: int, sizes: tuple[int, ...]
) -> Iterator[tuple[int, int, int]]:
  """Cuts `count` pairs into pieces: (start, stop, padded size) of each.

  The rest is padded if that adds at most half of it and a few pairs; otherwise
  it is cut again. A call costs about as much as a few pairs do.
  """
  start = 0
  while left := count - start:
    least = min((s for s in sizes if s >= left), default=sizes[0])
    fits = [s for s in sizes if s <= left]
    size = least if not fits or least <= 1.5 * left + 8 else fits[0]
    stop = min(start + size, count)
    yield start, stop, size
    start = stop


def _blocks(
  lengths: Int[np.ndarray, " Q"], k: int, sizes: tuple[int, ...]
) -> Iterator[Block]:
  """Cuts all pairs of Q lists of k into blocks of texts of one length."""
  for length in np.unique(lengths):
    alike = np.flatnonzero(lengths == length)
    for start, stop, pairs in _pieces(len(alike) * k, sizes):
      at, columns = np.divmod(np.arange(start, stop), k)
      several = at[-1] - at[0] + 1
      texts = next(t for t in _texts(pairs) if t >= several)
      yield Block(alike[at], columns, Shape(pairs, texts, int(length)))


def _gather(
  shape: tuple[int, int],
  scored: Iterator[tuple[Block, jax.Array]],
  progress: Progress | None,
) -> Float[np.ndarray, "Q K"]:
  """Puts results in their places; computes a block while the next is read."""
  h = np.empty(shape, np.float32)
  waiting: list[tuple[Block, jax.Array]] = []
  done = 0

  def take() -> None:
    nonlocal done
    block, out = waiting.pop(0)
    h[block.queries, block.columns] = np.asarray(out)[: len(block.queries)]
    done += len(block.queries)
    if progress is not None:
      progress(done)

  for result in scored:
    waiting.append(result)
    if len(waiting) > 1:
      take()
  while waiting:
    take()
  return h
