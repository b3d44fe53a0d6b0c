"""Compiled programs: kept on disk, counted, and kept out of what is timed.

A program that starts again, or a stage that runs what another one ran, loads
them instead of compiling them anew. Neither is free: both are counted.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import threading
import time
from collections.abc import Iterator

import jax

from fs_jax.machine import console, errors, files

FOLDER = "compiled"
_CPU = pathlib.Path("/proc/cpuinfo")
_SECONDS = 0.2  # what compiles faster is not worth a file
# What jax says, with the seconds, of each program that it compiles or loads.
_MADE = "/jax/core/compile/backend_compile_duration"


def enable() -> None:
  """Keeps programs in the user's own cache, ~/.cache/fs_jax/compiled.

  Never in what is shared: a program from there is run as it is. A folder that
  others may write to is not used. JAX_COMPILATION_CACHE_DIR names another one.
  A damaged or unwritable file costs a compilation and nothing else.
  """
  if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return
  folder = pathlib.Path(files.cache()) / FOLDER
  try:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    seen = folder.stat()
  except OSError as error:
    console.say(f"compiled programs are not kept: {errors.one_line(error)}")
    return
  if seen.st_uid != os.getuid() or seen.st_mode & 0o022:
    console.say(
      f"compiled programs are not kept: {folder} must be writable by you "
      f"alone; got mode {seen.st_mode & 0o777:o}. chmod 700 {folder}"
    )
    return
  jax.config.update("jax_compilation_cache_dir", str(folder / _machine()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
  # Its caches of kernels put the folder into every key: moved, none would fit.
  jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _machine() -> str:
  """A name for this kind of CPU: jax's own key does not hold what it can do."""
  said = [platform.machine(), platform.processor()]
  if _CPU.exists():
    lines = _CPU.read_text().splitlines()
    said += sorted({x for x in lines if x.startswith(("flags", "Features"))})
  return hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]


class Count:
  """Programs compiled, or loaded from disk, while a block ran."""

  def __init__(self) -> None:
    self.programs = 0
    self.seconds = 0.0  # that making them took, in all threads together
    self.elapsed = 0.0  # wall time of the block, once it has ended


@contextlib.contextmanager
def counting() -> Iterator[Count]:
  """Counts the programs that any thread makes until the block ends."""
  count = Count()
  with _lock:
    _counts.append(count)
  began = time.perf_counter()
  try:
    yield count
  finally:
    count.elapsed = time.perf_counter() - began
    with _lock:
      _counts.remove(count)


@contextlib.contextmanager
def timed(name: str) -> Iterator[Count]:
  """Times a block in which nothing may be compiled: see `elapsed`.

  Raises:
    RuntimeError: something was: whoever times a block runs its shapes before.
  """
  with counting() as count:
    yield count
  if count.programs:
    raise RuntimeError(
      f"{name}: what is timed must find its programs compiled; got "
      f"{count.programs} that took {count.seconds:.2f} of "
      f"{count.elapsed:.2f} s. run the same shapes before the clock"
    )


def _heard(event: str, duration_secs: float, **_: str | int) -> None:
  if event == _MADE:
    with _lock:
      for count in _counts:
        count.programs += 1
        count.seconds += duration_secs


_lock = threading.Lock()
_counts: list[Count] = []
# Once a process, as this module is imported: listeners are never taken away.
jax.monitoring.register_event_duration_secs_listener(_heard)


def versions() -> dict[str, str]:
  """Of the packages that decide what is compiled."""
  found = {}
  for name in ("jax", "jaxlib", "libtpu", "flax", "optax"):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = ""
  return found
