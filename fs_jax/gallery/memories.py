"""The store of Slow's memories, read by row through memory maps.

    memories/  manifest.json  ids.txt  level0-00000.bin  mask0-00000.bin ...

Each level is stored as little-endian records of one size in row order, in
shards of a fixed number of rows. A shard has a mask file (one byte per token)
only if some token in it is masked. The manifest holds the precision, and the
tokens and width of each level.
"""

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import BinaryIO

import numpy as np
from etils import epath

from fs_jax import types
from fs_jax.gallery import corpus
from fs_jax.machine import commands, files, provenance
from fs_jax.machine import manifest as manifests
from fs_jax.runs import contract as contracts

KIND = "memories"  # the manifest's kind
_DTYPES = {contracts.PRECISION: np.dtype("<f4")}
SHARD_BYTES = 1 << 30


class Writer:
  """Appends memories in row order; the folder appears once all are written.

  ```
  with memories.Writer(folder, {"slow": slow_contract}) as writer:
    for batch in batches:
      writer.append(memory, ids)
  ```

  An error inside the block leaves an older store as it was and nothing else.

  Args:
    folder: the folder to make or replace.
    contract: the contract's parts; `slow` has the `precision` of the latents on
      disk, and `items` is added.
    shard_bytes: the size of all levels of a shard together, at most (but one
      row at least).

  Raises:
    ValueError: an unknown precision; on leaving the block, no row was appended.
    errors.DiskFull: no space is left.
  """

  def __init__(
    self,
    folder: epath.PathLike,
    contract: provenance.Contract,
    *,
    shard_bytes: int = SHARD_BYTES,
  ):
    precision = contract.get("slow", {}).get("precision")
    if precision not in _DTYPES:
      raise ValueError(
        f"slow.precision: must be one of {', '.join(_DTYPES)}; got "
        f"{precision!r}. pass a contract whose slow part names one"
      )
    self._target = folder
    self._precision: str = precision
    self._contract = contract
    self._shard_bytes = shard_bytes
    self._ids: list[str] = []
    self._shapes: list[tuple[int, int]] = []  # (N, d_mem) of each level
    self._rows = 0  # rows of a full shard, known from the first batch on
    self._open = contextlib.ExitStack()  # closes the current shard's files
    self._latents: list[BinaryIO] = []
    self._masks: dict[int, BinaryIO] = {}

  def __enter__(self) -> "Writer":
    self._context = manifests.folder(self._target, KIND)
    self._folder = self._context.__enter__()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> bool | None:
    try:
      self._open.close()
      if kind is None:
        self._finish()
    except BaseException as failed:
      # The manager gets the error too: it removes the folder and explains it.
      if not self._context.__exit__(type(failed), failed, failed.__traceback__):
        raise
      return None
    return self._context.__exit__(kind, error, trace)

  def append(self, memory: types.Memory, ids: Sequence[str]) -> None:
    """Appends the next rows.

    Args:
      memory: memories of B visuals, without rows that pad a batch.
      ids: B ids.

    Raises:
      ValueError: shapes that do not match each other or the first batch; a
        latent that is not finite, or too large for the precision.
    """
    levels = [(np.asarray(lat), np.asarray(m)) for lat, m in memory.levels]
    shapes = [(x.shape[1], x.shape[2]) for x, _ in levels]
    for level, (latent, mask) in enumerate(levels):
      if latent.shape[0] != len(ids) or mask.shape != latent.shape[:2]:
        raise ValueError(
          f"memory: level {level} needs latents [B,N,d] and masks [B,N] for "
          f"{len(ids)} ids; got {latent.shape} and {mask.shape}. cut off rows "
          f"that pad the batch"
        )
    if not self._shapes:
      self._shapes = shapes
      self._rows = max(1, self._shard_bytes // self._row_bytes())
    if shapes != self._shapes:
      raise ValueError(
        f"memory: every batch has the shapes of the first, {self._shapes}; "
        f"got {shapes}. encode them with one config"
      )
    stored = [
      (self._cast(level, latent, ids), mask.astype(bool))
      for level, (latent, mask) in enumerate(levels)
    ]
    start = 0
    while start < len(ids):
      shard, filled = divmod(len(self._ids), self._rows)
      if filled == 0:
        self._next_shard(shard)
      stop = min(len(ids), start + self._rows - filled)
      for level, (latent, mask) in enumerate(stored):
        files.write_to(self._latents[level], latent[start:stop])
        self._append_mask(level, shard, filled, mask[start:stop])
      self._ids += ids[start:stop]
      start = stop

  def _cast(
    self, level: int, latent: np.ndarray, ids: Sequence[str]
  ) -> np.ndarray:
    with np.errstate(over="ignore"):  # refused below, with the row
      stored: np.ndarray = latent.astype(_DTYPES[self._precision])
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=(1, 2)))
    if bad.size:
      raise ValueError(
        f"memory: latents must be finite as {self._precision}; got "
        f"{np.abs(latent[bad[0]]).max()} at level {level} of "
        f"{ids[int(bad[0])]!r}. look at that item, then encode again"
      )
    return stored

  def _next_shard(self, shard: int) -> None:
    self._open.close()
    self._masks = {}
    self._latents = [
      self._create(f"level{level}-{shard:05d}.bin")
      for level in range(len(self._shapes))
    ]

  def _append_mask(
    self, level: int, shard: int, filled: int, mask: np.ndarray
  ) -> None:
    if level not in self._masks:
      if mask.all():
        return
      # This is the shard's first masked token: earlier rows had none.
      self._masks[level] = self._create(f"mask{level}-{shard:05d}.bin")
      before = np.ones((filled, mask.shape[1]), np.uint8)
      files.write_to(self._masks[level], before)
    files.write_to(self._masks[level], mask.astype(np.uint8))

  def _create(self, name: str) -> BinaryIO:
    return self._open.enter_context(open(self._folder / name, "xb"))

  def _row_bytes(self) -> int:
    size = _DTYPES[self._precision].itemsize
    return sum(n * d * size for n, d in self._shapes)

  def _finish(self) -> None:
    if not self._ids:
      raise ValueError(
        f"{self._target}: a store has at least one row; got none. encode a "
        f"gallery that is not empty"
      )
    corpus.check_ids(self._ids)
    corpus.write_ids(self._folder, self._ids)
    manifests.write_manifest(
      self._folder,
      {
        "kind": KIND,
        "dtype": self._precision,
        "levels": [{"tokens": n, "d_mem": d} for n, d in self._shapes],
        "count": len(self._ids),
        "shard_rows": self._rows,
        "bytes_per_item": self._row_bytes(),
        "contract": {**self._contract, "items": contracts.items(self._ids)},
      },
    )


class Memories:
  """Reads by row what `Writer` wrote, in the stored precision.

  Args:
    folder: the store's folder; one in an object store is copied here first.
    expected: parts of the contract that must agree, such as `slow`.
    ids: the index's ids, in the order of its rows; the store may hold more ids,
      in another order. None: the store's own.
    hashes: False checks the sizes of files, not their contents, so that a large
      store opens at once.
    mend: the fix that errors suggest; if "", to encode again.

  Raises:
    FileNotFoundError: no such store.
    ValueError: damaged, of another contract, or without one of `ids`.
  """

  def __init__(
    self,
    folder: epath.PathLike,
    expected: provenance.Contract | None = None,
    *,
    ids: Sequence[str] | None = None,
    hashes: bool = True,
    mend: str = "",
  ):
    mend = mend or f"encode the gallery again: {commands.program('encode')}"
    path, manifest = provenance.open_folder(
      folder, KIND, expected, hashes=hashes, mend=mend
    )
    self.contract: dict[str, provenance.Part] = manifest["contract"]
    own = corpus.read_ids(path, manifest)
    self._stored = len(own)
    self.ids = own if ids is None else tuple(ids)
    self._rows = None if self.ids == own else _find_rows(self.ids, own, mend)
    self.precision: str = manifest["dtype"]
    self.bytes_per_item: int = manifest["bytes_per_item"]  # without masks
    self._shard_rows: int = manifest["shard_rows"]
    self._shapes = [(x["tokens"], x["d_mem"]) for x in manifest["levels"]]
    self._maps = [
      [self._map(path, level, shard) for shard in range(self._shards())]
      for level in range(len(self._shapes))
    ]

  def __len__(self) -> int:
    return len(self.ids)

  def read(self, rows: np.ndarray) -> types.Memory:
    """Reads the memories of rows [...]: latents [...,N,d], masks [...,N].

    They are NumPy arrays in the stored precision. Row -1 gives zeros and a mask
    without tokens.

    Raises:
      ValueError: rows that are not integers, or not in the store.
    """
    rows = np.asarray(rows)
    if not np.issubdtype(rows.dtype, np.integer):
      raise ValueError(
        f"rows: must be integers; got {rows.dtype}. convert them to int32"
      )
    flat: np.ndarray = rows.reshape(-1).astype(np.int64)
    if flat.size and not (flat.min() >= -1 and flat.max() < len(self)):
      raise ValueError(
        f"rows: must be -1 or in 0..{len(self) - 1}; got "
        f"{flat.min()}..{flat.max()}. ask for rows of its ids"
      )
    if self._rows is not None:
      flat = np.where(flat >= 0, self._rows[flat], -1)
    shard, at = np.divmod(flat, self._shard_rows)  # row -1 falls into no shard
    picks = [
      (s, np.flatnonzero(shard == s)) for s in np.unique(shard[flat >= 0])
    ]
    levels = []
    for level, (tokens, width) in enumerate(self._shapes):
      latent = np.zeros((flat.size, tokens, width), _DTYPES[self.precision])
      mask = np.zeros((flat.size, tokens), bool)
      for s, here in picks:
        latents, masks = self._maps[level][s]
        latent[here] = latents[at[here]]
        mask[here] = True if masks is None else masks[at[here]] != 0
      levels.append(
        types.Level(
          latent.reshape(*rows.shape, tokens, width),
          mask.reshape(*rows.shape, tokens),
        )
      )
    return types.Memory(tuple(levels))

  def _shards(self) -> int:
    return -(-self._stored // self._shard_rows)

  def _map(
    self, path: epath.Path, level: int, shard: int
  ) -> tuple[np.ndarray, np.ndarray | None]:
    tokens, width = self._shapes[level]
    rows = min(self._shard_rows, self._stored - shard * self._shard_rows)
    name = path / f"level{level}-{shard:05d}.bin"
    size = rows * tokens * width * _DTYPES[self.precision].itemsize
    if not name.exists() or name.stat().length != size:
      raise ValueError(
        f"{name}: must have {size} bytes for {rows} rows of {tokens} x {width} "
        f"{self.precision}; got another file or none. make the store again"
      )
    dtype = _DTYPES[self.precision]
    latents: np.ndarray = np.memmap(
      name, dtype, "r", shape=(rows, tokens, width)
    )
    masked = path / f"mask{level}-{shard:05d}.bin"
    if not masked.exists():
      return latents, None
    return latents, np.memmap(masked, np.uint8, "r", shape=(rows, tokens))


def _find_rows(
  ids: Sequence[str], stored: Sequence[str], mend: str
) -> np.ndarray:
  """Finds the store's row of each id: int64 [C].

  Raises:
    ValueError: the store lacks one.
  """
  row = {name: at for at, name in enumerate(stored)}
  missing = [name for name in ids if name not in row]
  if missing:
    raise ValueError(
      f"items: the store must hold every item of the index; got {len(missing)} "
      f"of {len(ids)} missing, first {missing[0]!r}. {mend}"
    )
  return np.array([row[name] for name in ids], np.int64)
