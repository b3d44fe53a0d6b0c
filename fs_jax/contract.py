"""What makes vectors, memories and indices comparable.

A contract has parts, each a flat dict of scalars, and only like parts are
compared: `fast` (query encoder, corpus, index), `slow` (decoder, token store,
fits) and `items` (index and store). It is stored in every manifest and checked
before anything is used; a difference is an error that says how to mend it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fs_jax import config, paths, types

Part = dict[str, Any]  # flat: str, int, float, bool


def digest(params: types.Params) -> str:
  """SHA-256 over the leaves in order of name: name, shape, dtype, bytes.

  Placement does not count, the names do: give the same subtree each time.

  Raises:
    ValueError: an array of which this process holds only a part.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  total = hashlib.sha256()
  for name, leaf in sorted((paths.name(p), x) for p, x in leaves):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      raise ValueError(
        f"digest: needs whole arrays; got {name!r}, spread over processes. "
        f"gather the parameters first"
      )
    array = np.asarray(leaf)
    total.update(f"{name}\0{array.shape}\0{array.dtype.name}\0".encode())
    total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  return total.hexdigest()


def fast(cfg: config.Config, tokenizer_hash: str, params: types.Params) -> Part:
  """Of everything that holds Fast vectors.

  Args:
    cfg: of the run.
    tokenizer_hash: of the tokenizer's file.
    params: Fast's own parameters, not the tree they are part of.
  """
  return _inputs(cfg, tokenizer_hash) | {
    "embed": cfg.fast.embed,
    "visual_pool": cfg.fast.vision.pool,
    "text_pool": cfg.fast.text.pool,
    "digest": digest(params),
  }


def slow(
  cfg: config.Config,
  tokenizer_hash: str,
  params: types.Params,
  *,
  precision: str,
) -> Part:
  """Of everything that holds Slow memories, or numbers fitted on its scores.

  Args:
    cfg: of the run.
    tokenizer_hash: of the tokenizer's file.
    params: Slow's own parameters, not the tree they are part of.
    precision: of the stored latents, "float32" or "float16".

  Raises:
    ValueError: the config has no Slow model.
  """
  if cfg.slow is None:
    raise ValueError(
      "slow: the contract of Slow needs config.slow; got None. give the run "
      "that trained Slow"
    )
  return _inputs(cfg, tokenizer_hash) | {
    "levels": cfg.slow.levels,
    "d_mem": cfg.slow.d_mem,
    "finer_frames": cfg.slow.finer_frames,
    "precision": precision,
    "digest": digest(params),
  }


def items(ids: Sequence[str]) -> Part:
  """Of an ordered list of ids; `ids` is the SHA-256 of its ids.txt."""
  text = "".join(f"{i}\n" for i in ids)
  # An id that is not Unicode gets a hash here and an error where it is written.
  encoded = text.encode(errors="surrogatepass")
  return {"count": len(ids), "ids": hashlib.sha256(encoded).hexdigest()}


def check(
  part: str,
  ours: Mapping[str, Any],
  theirs: Mapping[str, Any],
  *,
  ours_name: str,
  theirs_name: str,
  mend: str,
) -> None:
  """Refuses two sides that differ.

  Raises:
    ValueError: names the first field that differs, both values, and `mend`.
  """
  for field in [*ours, *(f for f in theirs if f not in ours)]:
    left, right = ours.get(field), theirs.get(field)
    if left != right:
      raise ValueError(
        f"{part}.{field}: {ours_name} and {theirs_name} must agree; got "
        f"{left!r} ({ours_name}) and {right!r} ({theirs_name}). {mend}"
      )


def check_all(
  ours: Mapping[str, Mapping[str, Any]] | None,
  theirs: Mapping[str, Mapping[str, Any]],
  *,
  ours_name: str,
  theirs_name: str,
  mend: str,
) -> None:
  """`check` of every part that ours has; no parts, no check.

  Raises:
    ValueError: as `check`, or a part that theirs lacks.
  """
  names = {"ours_name": ours_name, "theirs_name": theirs_name}
  for part, fields in (ours or {}).items():
    if part not in theirs:
      raise ValueError(
        f"{part}: {theirs_name} must have this part of the contract; got "
        f"{', '.join(theirs) or 'none'}. {mend}"
      )
    check(part, fields, theirs[part], **names, mend=mend)


def check_items(
  index_ids: Sequence[str], store_ids: Sequence[str]
) -> np.ndarray:
  """int32 [C]: the store's row of each row of the index.

  Raises:
    ValueError: the store lacks an item of the index.
  """
  row = {name: at for at, name in enumerate(store_ids)}
  lacking = [name for name in index_ids if name not in row]
  if lacking:
    raise ValueError(
      f"items: the store must hold every item of the index; got "
      f"{len(lacking)} of {len(index_ids)} missing, first {lacking[0]!r}. "
      f"encode the gallery again with its memories: python -m launch.encode"
    )
  return np.array([row[name] for name in index_ids], np.int32)


def _inputs(cfg: config.Config, tokenizer_hash: str) -> Part:
  """What both models are shown; the fields that explain most come first."""
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
  }


def _numbers(values: Sequence[float]) -> str:
  return " ".join(repr(float(v)) for v in values)
