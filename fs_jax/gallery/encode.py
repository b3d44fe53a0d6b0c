"""Encodes a gallery in batches of one shape: vectors, memories, items."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath

from fs_jax import config, types
from fs_jax.data import pipeline, sources
from fs_jax.gallery import buckets, corpus, items
from fs_jax.gallery import memories as memory_store
from fs_jax.machine import console, provenance
from fs_jax.models import build
from fs_jax.runs import contract, stages

BATCH = 256  # visuals on the device at once; the last batch is padded to it


def encode_visuals(
  run: stages.Run, source: sources.Source, *, batch_size: int = BATCH
) -> np.ndarray:
  """Encodes every visual with Fast: float32 [C,E], unit length."""
  _require_whole(run)
  embed = functools.partial(_embed_visual, run.cfg, run.tokenizer.vocab_size)
  parts = [
    np.asarray(embed(run.params["fast"], batch.visual))[batch.mask]
    for batch in _batches(run, source, batch_size, "vectors")
  ]
  return np.concatenate(parts)


def encode_texts(run: stages.Run, text: types.Array) -> np.ndarray:
  """Encodes token rows int32 [Q,L] with Fast: float32 [Q,E], unit length."""
  return make_text_encoder(run)(text)


def make_text_encoder(run: stages.Run) -> Callable[[types.Array], np.ndarray]:
  """`encode_texts` as a function of the token rows alone.

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
  """Yields Slow's memories of all visuals in batches, without padding rows."""
  _require_whole(run)
  embed = functools.partial(_memorise, run.cfg, run.tokenizer.vocab_size)
  for batch in _batches(run, source, batch_size, "memories"):
    memory = jax.device_get(embed(run.params["slow"], batch.visual))
    yield jax.tree.map(lambda x, mask=batch.mask: x[mask], memory)


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
    source: the gallery's visuals.
    folder: the corpus's folder.
    stale: what to do with vectors of another model or other visuals.
    mend: the fix that errors suggest.

  Raises:
    ValueError: vectors that are refused as stale, or damaged.
  """
  parts = make_contract(run, source)
  if not provenance.folder_needed(
    folder, corpus.KIND, parts, stale=stale, mend=mend
  ):
    return corpus.load(folder, parts, hashes=False, mend=mend)  # just checked
  vectors = types.Corpus(encode_visuals(run, source), source.ids)
  corpus.save(folder, vectors, parts)
  return vectors


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
  parts = make_contract(run, source)
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
  """Writes what people see of a gallery into `folder`, unless it is there.

  Items depend on the data alone. Items of other data are replaced.

  Args:
    source: the gallery's visuals.
    folder: the items' folder.
    parts: the items' contract, if known already.
  """
  parts = parts or items.make_contract(source)
  if provenance.folder_needed(folder, items.KIND, parts, stale="replace"):
    items.write(folder, source, parts)


def sample_queries(run: stages.Run, most: int = 1024) -> np.ndarray:
  """Encodes up to `most` validation captions, to measure recall on."""
  source = sources.open_lazily(run.cfg.data, run.cfg.data.validation)
  text, _ = pipeline.caption_table(source, run.tokenizer)
  return encode_texts(run, text[:most])


def make_contract(
  run: stages.Run, source: sources.Source
) -> dict[str, provenance.Part]:
  """The contract of the vectors or memories that a stage makes of a source."""
  return {
    **run.contract,
    "split": contract.split(source.origin, source.contents()),
    "items": contract.items(source.ids),
  }


def _require_whole(run: stages.Run) -> None:
  if run.whole_contract is not None:
    raise ValueError(
      f"{run.folder}: must hold all parameters to encode visuals; got a "
      "part that reads texts. give the stage that it was packed from"
    )


# Compiled once per config: a study opens a stage several times.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed_visual(
  cfg: config.Config, vocabulary: int, params: types.Params, visual: types.Array
) -> jax.Array:
  model = build.fast_model(cfg, vocabulary)
  seen = build.pixels(cfg, visual)
  return build.apply(model, params, seen, method="visual")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed_text(
  cfg: config.Config, vocabulary: int, params: types.Params, text: types.Array
) -> jax.Array:
  model = build.fast_model(cfg, vocabulary)
  return build.apply(model, params, text, method="text")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _memorise(
  cfg: config.Config, vocabulary: int, params: types.Params, visual: types.Array
) -> types.Memory:
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
