"""The parts of a contract: what a result was made from, in comparable form.

A part is a flat dict of scalars, and only like parts are compared: `fast` (the
query encoder, vectors, index), `slow` (the decoder, memories, weights), `items`
and `split` (whose visuals), and the config of each stage. Every stored result
carries its contract, and `machine.provenance` compares it before use.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from fs_jax import config, configdict, trees, types
from fs_jax.machine import provenance

PRECISION = "float32"  # in which memories are stored

# Fields of a config that decide no result: where it is computed, where files
# lie, how often a run logs and saves. How weights are fitted is compared with
# the weights. All other fields are in the contract of whatever is made with the
# config.
UNCOMPARED = (
  "weights.",
  *("name", "mesh.", "data.dir", "data.threads", "data.cache", "tokens.file"),
  *("train.log_every", "train.save_every", "train.profile"),
  *("train.keep", "train.keep_every"),
)
# Fields that decide a model's inputs: stages that read each other must agree.
INPUTS = (
  *("data.image_size", "data.resize", "data.mean", "data.std", "data.frames"),
  *("tokens.kind", "tokens.phrases", "tokens.vocabulary", "tokens.length"),
  "tokens.lowercase",
)
# Fields of a model that its parameters do not depend on.
_NO_SIZES = ("dropout", "remat", "null_rate", "chunk", "scale", "bias")


def recipe(cfg: config.Config, group: str = "") -> provenance.Part:
  """Every field of a config by its path, except those in `UNCOMPARED`.

  Args:
    cfg: a stage's config.
    group: the beginning of the paths wanted, such as "data."; "" for all.
  """
  return {
    name: _scalar(value)
    for name, value in configdict.flatten(cfg).items()
    if name.startswith(group) and not _within(name, UNCOMPARED)
  }


def inputs(cfg: config.Config) -> provenance.Part:
  """The fields of a config that decide what its model sees (`INPUTS`)."""
  return {name: x for name, x in recipe(cfg).items() if name in INPUTS}


def sizes(cfg: config.Config, model: str) -> provenance.Part:
  """The fields that decide the shapes of a model's parameters.

  Args:
    cfg: a stage's config.
    model: the model's path in the config, such as "slow" or "fast.vision"; the
      names of fields are relative to it.
  """
  return {
    name.removeprefix(f"{model}."): x
    for name, x in recipe(cfg).items()
    if _within(name, (f"{model}.",)) and name.split(".")[-1] not in _NO_SIZES
  }


def _within(name: str, fields: Sequence[str]) -> bool:
  return any(
    name.startswith(f) if f.endswith(".") else name == f for f in fields
  )


def _scalar(value: object) -> object:
  """A value as JSON returns it. Lists become text, because parts are flat."""
  if isinstance(value, (list, tuple)):
    return json.dumps(value)
  return value


def digest(params: types.Params) -> str:
  """SHA-256 over the leaves in order of name: name, shape, dtype, bytes.

  Where arrays are placed does not count. Their names do, so pass the same
  subtree each time.

  Raises:
    ValueError: an array that this process holds only in part.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  total = hashlib.sha256()
  for name, leaf in sorted((trees.name(p), x) for p, x in leaves):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      raise ValueError(
        f"digest: needs whole arrays; got {name!r}, spread over processes. "
        f"gather the parameters first"
      )
    array = np.asarray(leaf)
    total.update(f"{name}\0{array.shape}\0{array.dtype.name}\0".encode())
    total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  return total.hexdigest()


def fast(
  cfg: config.Config, tokenizer_hash: str, params: types.Params
) -> provenance.Part:
  """The part `fast`, of everything that holds Fast vectors.

  Args:
    cfg: the stage's config.
    tokenizer_hash: the hash of the tokenizer's file.
    params: Fast's own parameters, not the tree that holds them.
  """
  own = {
    "embed": cfg.fast.embed,
    "visual_pool": cfg.fast.vision.pool,
    "text_pool": cfg.fast.text.pool,
  }
  return _model_part(cfg, tokenizer_hash, own, params)


def slow(
  cfg: config.Config, tokenizer_hash: str, params: types.Params
) -> provenance.Part:
  """The part `slow`, of Slow's memories and of numbers fitted on its scores.

  Args:
    cfg: the stage's config.
    tokenizer_hash: the hash of the tokenizer's file.
    params: Slow's own parameters, not the tree that holds them.

  Raises:
    ValueError: the config has no Slow model.
  """
  if cfg.slow is None:
    raise ValueError(
      "slow: the contract of Slow needs config.slow; got None. give the run "
      "that trained Slow"
    )
  own = {
    "levels": cfg.slow.levels,
    "d_mem": cfg.slow.d_mem,
    "finer_frames": cfg.slow.finer_frames,
    "precision": PRECISION,
  }
  return _model_part(cfg, tokenizer_hash, own, params)


def items(ids: Sequence[str]) -> provenance.Part:
  """The part `items`, of an ordered list of ids.

  Its field `ids` is the SHA-256 of the list's ids.txt.
  """
  text = "".join(f"{i}\n" for i in ids)
  # An id that is not Unicode is hashed here and refused when it is written.
  encoded = text.encode(errors="surrogatepass")
  return {"count": len(ids), "ids": hashlib.sha256(encoded).hexdigest()}


def split(origin: Mapping[str, object], contents: str = "") -> provenance.Part:
  """The part `split`: a source's `origin` and, for files, their `contents`."""
  part = {name: _scalar(value) for name, value in origin.items()}
  return part | {"contents": contents} if contents else part


def captions(all_captions: Sequence[Sequence[str]]) -> provenance.Part:
  """The part `captions`, of results that depend on a source's captions too."""
  return {
    "texts": provenance.digest_json([list(some) for some in all_captions])
  }


def flag(field: str, value: object) -> str:
  """A config's field as a flag: --config.data.mean='(0.5, 0.5, 0.5,)'."""
  text = value if isinstance(value, str) else json.dumps(value)
  if text.startswith("["):  # a tuple, which `recipe` gives as JSON
    text = f"({text[1:-1]},)" if text != "[]" else "()"
  return shlex.quote(f"--config.{field}={text}")


def _model_part(
  cfg: config.Config,
  tokenizer_hash: str,
  own: provenance.Part,
  params: types.Params,
) -> provenance.Part:
  """A model's inputs, its own fields and its parameters, in this order.

  The first field that differs is the one that an error names, so those that
  explain most come first.
  """
  return {
    "tokenizer": tokenizer_hash,
    "lowercase": cfg.tokens.lowercase,
    "unicode": "NFC",
    "length": cfg.tokens.length,
    "image_size": cfg.data.image_size,
    "resize": cfg.data.resize,
    "resize_method": "bicubic, antialiased",
    "mean": _numbers(cfg.data.mean),
    "std": _numbers(cfg.data.std),
    "frames": cfg.data.frames,
    **own,
    "compute": cfg.compute,
    "digest": digest(params),
  }


def _numbers(values: Sequence[float]) -> str:
  return " ".join(repr(float(v)) for v in values)
