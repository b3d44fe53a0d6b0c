"""A digest of a split's files, so that a replaced picture is noticed.

Its name stays, but what was made from the old picture must not be used. The
digest is cached in ~/.cache/fs_jax: files whose sizes and times are unchanged
are not read again.
"""

import os
import time
from collections.abc import Mapping
from concurrent import futures

from etils import epath

from fs_jax.machine import console, errors, files, manifest, provenance

KIND = "contents"
PATIENCE = 5.0  # seconds of reading before progress is shown
# A file younger than this can change again within one tick of its clock.
_SETTLED = 2_000_000_000  # ns


def digest(pictures: Mapping[str, epath.Path], threads: int) -> str:
  """SHA-256 over the names and the contents of files, wherever they lie.

  Args:
    pictures: name -> file.
    threads: how many read.

  Raises:
    FileNotFoundError: a file is gone.
  """
  with futures.ThreadPoolExecutor(threads) as pool:
    stamps = list(pool.map(_stamp, pictures.values()))
    paths = {name: os.fspath(path) for name, path in pictures.items()}
    made_from = {"files": {"stamps": provenance.digest_json(stamps)}}
    name = provenance.digest_json([paths, stamps])[:32]
    cached = files.cache_folder() / KIND / f"{name}.json"
    known = provenance.find_record(cached, KIND, made_from)
    if known is not None:
      return str(known["sha256"])
    sums = []
    with console.Bar("pictures", len(pictures), patience=PATIENCE) as bar:
      for file_sum in pool.map(files.sha256, pictures.values()):
        sums.append(file_sum)
        bar.advance(len(sums))
  total = provenance.digest_json(dict(zip(pictures, sums, strict=True)))
  newest = max((max(times) for _, times in stamps), default=0)
  if newest < time.time_ns() - _SETTLED:
    try:
      manifest.write_record(cached, KIND, made_from, {"sha256": total})
    except (OSError, errors.DiskFull) as error:  # they are read again
      console.say(f"the digest of the pictures is not cached: {error}")
  return total


def _stamp(path: epath.Path) -> tuple[int, tuple[int, ...]]:
  """Size, and times in ns: the second shows a change that resets the first."""
  if files.is_remote(path):
    remote = path.stat()
    return remote.length, (int(remote.mtime) * 1_000_000_000,)
  status = os.stat(path)
  return status.st_size, (status.st_mtime_ns, status.st_ctime_ns)
