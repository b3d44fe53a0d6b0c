"""Fast vectors and Slow memories of a source, in batches of one shape."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath

from fs_jax import types
from fs_jax.data import pipeline, sources
from fs_jax.gallery import buckets, corpus, items
from fs_jax.gallery import memories as memory_store
from fs_jax.machine import console, provenance
from fs_jax.models import build
from fs_jax.runs import contract, stages

BATCH = 256  # visuals on the device at once; the last batch is padded to it


def visual_vectors(
  run: stages.Run, source: sources.Source, *, batch_size: int = BATCH
) -> np.ndarray:
  """f(x) of every visual: float32 [C,E], unit length."""
  _require_whole(run)
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

  It runs in the batch sizes of `buckets`, and so compiles a few programs for
  any number of queries.
  """
  embed = functools.partial(_embed_text, run.cfg, run.tokenizer.vocab_size)

  def encode(text: types.Array) -> np.ndarray:
    batches = buckets.pad_batches(np.asarray(text, np.int32))
    return np.concatenate(
      [
        np.asarray(embed(run.params["fast"], batch))[:count]
        for batch, count in batches
      ]
    )

  return encode


def encode_memories(
  run: stages.Run, source: sources.Source, *, batch_size: int = BATCH
) -> Iterator[types.Memory]:
  """What Slow keeps of every visual, batch by batch, without padding rows."""
  _require_whole(run)
  embed = functools.partial(_memorise, run.cfg, run.tokenizer.vocab_size)
  for batch in _batches(run, source, batch_size, "memories"):
    memory = jax.device_get(embed(run.params["slow"], batch.visual))
    yield jax.tree.map(lambda x, keep=batch.mask: x[keep], memory)


def write_vectors(
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
    folder, corpus.KIND, parts, stale=stale, mend=mend
  ):
    return corpus.load(folder, parts, hashes=False, mend=mend)  # just checked
  made = types.Corpus(visual_vectors(run, source), source.ids)
  corpus.save(folder, made, parts)
  return made


def write_memories(
  run: stages.Run,
  source: sources.Source,
  folder: epath.PathLike,
  *,
  stale: provenance.Stale = "refuse",
  mend: str = "",
) -> memory_store.Memories:
  """Encodes a gallery's memories into `folder`, unless they are there.

  Arguments and errors as `write_vectors`; `run` is a trained Slow.
  """
  parts = contracts_of(run, source)
  if provenance.folder_needed(
    folder, memory_store.KIND, parts, stale=stale, mend=mend
  ):
    with memory_store.Writer(folder, parts) as writer:
      start = 0
      for memory in encode_memories(run, source):
        size = len(memory.levels[0].mask)
        writer.append(memory, source.ids[start : start + size])
        start += size
  return memory_store.Memories(
    folder, parts, hashes=False, mend=mend
  )  # just checked


def write_items(
  source: sources.Source,
  folder: epath.PathLike,
  parts: provenance.Contract | None = None,
) -> None:
  """Writes what a person is shown of a gallery, unless it is there.

  They follow from the data alone: items of other data are made anew.

  Args:
    source: the gallery.
    folder: of the items.
    parts: what they follow from, where that is known already.
  """
  parts = parts or items.contract_of(source)
  if provenance.folder_needed(folder, items.KIND, parts, stale="replace"):
    items.write(folder, source, parts)


def queries_of(run: stages.Run, most: int = 1024) -> np.ndarray:
  """Vectors of validation captions: what recall is measured on."""
  some = sources.open_lazily(run.cfg.data, run.cfg.data.validation)
  text, _ = pipeline.caption_table(some, run.tokenizer)
  return text_vectors(run, text[:most])


def contracts_of(
  run: stages.Run, source: sources.Source
) -> dict[str, provenance.Part]:
  """What vectors or memories of a source are made from."""
  return {
    **run.contract,
    "split": contract.split(source.origin, source.contents()),
    "items": contract.items(source.ids),
  }


def _require_whole(run: stages.Run) -> None:
  if run.whole is not None:
    raise ValueError(
      f"{run.folder}: must hold all parameters to see pictures; got a part "
      "that reads texts. give the stage that it was packed from"
    )


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
