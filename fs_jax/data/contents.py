"""What the files of a split hold, as one number.

Names stay when a picture is replaced; what was made from the old one must not.
Files whose sizes and times are what they were are not read again: the number is
remembered in ~/.cache/fs_jax.
"""

import os
import time
from collections.abc import Mapping
from concurrent import futures

from etils import epath

from fs_jax.machine import console, errors, files, manifest, provenance

KIND = "contents"
PATIENCE = 5.0  # seconds of reading before it says how far it is
# A file as young as this can change once more within one tick of its clock.
_SETTLED = 2_000_000_000  # ns


def digest(pictures: Mapping[str, epath.Path], threads: int) -> str:
  """SHA-256 over the names and the contents of files, wherever they lie.

  Args:
    pictures: name -> file.
    threads: that read.

  Raises:
    FileNotFoundError: a file is gone.
  """
  with futures.ThreadPoolExecutor(threads) as pool:
    stamps = list(pool.map(_stamp, pictures.values()))
    places = {name: os.fspath(path) for name, path in pictures.items()}
    made_from = {"files": {"stamps": provenance.digest_json(stamps)}}
    name = provenance.digest_json([places, stamps])[:32]
    memory = files.cache() / KIND / f"{name}.json"
    known = provenance.record(memory, KIND, made_from)
    if known is not None:
      return str(known["sha256"])
    sums = []
    with console.Bar("pictures", len(pictures), patience=PATIENCE) as bar:
      for one in pool.map(files.sha256, pictures.values()):
        sums.append(one)
        bar.advance(len(sums))
  found = provenance.digest_json(dict(zip(pictures, sums, strict=True)))
  newest = max((max(times) for _, times in stamps), default=0)
  if newest < time.time_ns() - _SETTLED:
    try:
      manifest.write_record(memory, KIND, made_from, {"sha256": found})
    except (OSError, errors.DiskFull) as error:  # read again the next time
      console.say(f"not remembered what the pictures hold: {error}")
  return found


def _stamp(path: epath.Path) -> tuple[int, tuple[int, ...]]:
  """Size, and times in ns: a change, too, that sets the first one back."""
  if files.remote(path):
    seen = path.stat()
    return seen.length, (int(seen.mtime) * 1_000_000_000,)
  here = os.stat(path)
  return here.st_size, (here.st_mtime_ns, here.st_ctime_ns)
