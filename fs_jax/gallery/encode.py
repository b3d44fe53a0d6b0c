"""Fast vectors and Slow memories of a source, in batches of one shape."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath

from fs_jax import types
from fs_jax.data import pipeline, sources
from fs_jax.gallery import corpus
from fs_jax.gallery import memories as memory_store
from fs_jax.machine import console, provenance
from fs_jax.models import build
from fs_jax.runs import contract, stages

BATCH = 256  # rows on the device at once; the last batch is padded to it
TEXTS = (1, 8, 64, BATCH)  # texts are padded to one of these


def visual_vectors(
  run: stages.Run, source: sources.Source, *, batch_size: int = BATCH
) -> np.ndarray:
  """f(x) of every visual: float32 [C,E], unit length."""
  embed = functools.partial(_embed_visual, run.cfg, run.tokenizer.vocab_size)
  parts = [
    np.asarray(embed(run.params["fast"], batch.visual))[batch.mask]
    for batch in _batches(run, source, batch_size, "vectors")
  ]
  return np.concatenate(parts)


def text_vectors(run: stages.Run, text: types.Array) -> np.ndarray:
  """g(y) of token rows: int32 [Q,L] -> float32 [Q,E], unit length."""
  return text_encoder(run)(text)


def text_encoder(run: stages.Run) -> Callable[[types.Array], np.ndarray]:
  """`text_vectors` as a function that keeps what it compiled.

  Rows are padded to one of TEXTS, more than the last go in blocks of it: few
  shapes serve any number of queries.
  """
  embed = functools.partial(_embed_text, run.cfg, run.tokenizer.vocab_size)

  def encode(text: types.Array) -> np.ndarray:
    text = np.asarray(text, np.int32)
    parts = []
    for start in range(0, max(len(text), 1), BATCH):
      part = text[start : start + BATCH]
      size = next(s for s in TEXTS if len(part) <= s)
      padded = np.pad(part, ((0, size - len(part)), (0, 0)))
      parts.append(np.asarray(embed(run.params["fast"], padded))[: len(part)])
    return np.concatenate(parts)

  return encode


def memories(
  run: stages.Run, source: sources.Source, *, batch_size: int = BATCH
) -> Iterator[types.Memory]:
  """What Slow keeps of every visual, batch by batch, without padding rows."""
  embed = functools.partial(_memorise, run.cfg, run.tokenizer.vocab_size)
  for batch in _batches(run, source, batch_size, "memories"):
    memory = jax.device_get(embed(run.params["slow"], batch.visual))
    yield jax.tree.map(lambda x, keep=batch.mask: x[keep], memory)


def write_corpus(
  run: stages.Run,
  source: sources.Source,
  folder: epath.PathLike,
  *,
  stale: provenance.Stale = "refuse",
  mend: str = "",
) -> types.Corpus:
  """Encodes a gallery into `folder`, unless it is there already.

  Args:
    run: a trained Fast.
    source: the gallery.
    folder: of the corpus.
    stale: what becomes of another model's vectors, or another gallery's.
    mend: said where they are refused.

  Raises:
    ValueError: they are refused, or damaged.
  """
  parts = contracts_of(run, source)
  if not provenance.folder_needed(
    folder, "corpus", parts, stale=stale, mend=mend
  ):
    return corpus.load(folder, parts, hashes=False, mend=mend)  # just checked
  made = types.Corpus(visual_vectors(run, source), source.ids)
  corpus.save(folder, made, parts)
  return made


def write_store(
  run: stages.Run,
  source: sources.Source,
  folder: epath.PathLike,
  *,
  stale: provenance.Stale = "refuse",
  mend: str = "",
) -> memory_store.Store:
  """Encodes a gallery's memories into `folder`, unless they are there.

  Arguments and errors as `write_corpus`; `run` is a trained Slow.
  """
  parts = contracts_of(run, source)
  if provenance.folder_needed(folder, "store", parts, stale=stale, mend=mend):
    with memory_store.Writer(folder, parts) as writer:
      start = 0
      for memory in memories(run, source):
        size = len(memory.levels[0].mask)
        writer.append(memory, source.ids[start : start + size])
        start += size
  return memory_store.Store(
    folder, parts, hashes=False, mend=mend
  )  # just checked


def contracts_of(
  run: stages.Run, source: sources.Source
) -> dict[str, provenance.Part]:
  """What vectors or memories of a source are made from."""
  return {
    **run.contract,
    "split": contract.split(source.origin, source.contents()),
    "items": contract.items(source.ids),
  }


# Compiled once for all runs of a config: a study opens a stage several times.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed_visual(cfg, vocabulary, params, visual):
  model = build.fast_model(cfg, vocabulary)
  seen = build.pixels(cfg, visual)
  return build.apply(model, params, seen, method="visual")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed_text(cfg, vocabulary, params, text):
  model = build.fast_model(cfg, vocabulary)
  return build.apply(model, params, text, method="text")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _memorise(cfg, vocabulary, params, visual):
  model = build.slow_model(cfg, vocabulary)
  seen = build.pixels(cfg, visual)
  return build.apply(model, params, seen, method="encode_visual")


def _batches(
  run: stages.Run, source: sources.Source, batch_size: int, what: str
) -> Iterator[types.Batch]:
  batch_size = min(batch_size, max(len(source), 1))
  with console.Bar(f"{run.cfg.stage}: {what}", len(source)) as bar:
    done = 0
    batches = pipeline.eval_batches(
      source, run.tokenizer, run.cfg, batch_size, captions=False
    )
    for batch in batches:
      yield batch
      done += int(batch.mask.sum())
      bar.advance(done)
