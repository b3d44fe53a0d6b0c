"""Compiled programs: kept on disk, counted, and kept out of timings.

A program that restarts, or a stage that runs the same computation as another,
loads them instead of compiling again. Neither is free: both are counted.
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
_SECONDS = 0.2  # a program that compiles faster is not worth a file
# The event, with a duration, for each program that jax compiles or loads.
_EVENT = "/jax/core/compile/backend_compile_duration"


def enable() -> None:
  """Keeps programs in the user's own cache, ~/.cache/fs_jax/compiled.

  Never in a shared folder: a program loaded from the cache runs unchecked, so
  one that others may write to is not used. JAX_COMPILATION_CACHE_DIR overrides.
  A damaged or unwritable file costs a compilation and nothing else.
  """
  if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return
  folder = pathlib.Path(files.cache_folder()) / FOLDER
  try:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
  except OSError as error:
    console.say(f"compiled programs are not kept: {errors.one_line(error)}")
    return
  if status.st_uid != os.getuid() or status.st_mode & 0o022:
    console.say(
      f"compiled programs are not kept: {folder} must be writable by you "
      f"alone; got mode {status.st_mode & 0o777:o}. chmod 700 {folder}"
    )
    return
  jax.config.update("jax_compilation_cache_dir", str(folder / _machine()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
  # XLA's kernel caches put the folder into every key: a moved one would miss.
  jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _machine() -> str:
  """A name for this kind of CPU: jax's own key leaves out its features."""
  features = [platform.machine(), platform.processor()]
  if _CPU.exists():
    lines = _CPU.read_text().splitlines()
    features += sorted(
      {x for x in lines if x.startswith(("flags", "Features"))}
    )
  return hashlib.sha256("\n".join(features).encode()).hexdigest()[:12]


class Count:
  """Programs compiled, or loaded from disk, while a block ran."""

  def __init__(self) -> None:
    self.programs = 0
    self.seconds = 0.0  # spent on making them, summed over threads
    self.elapsed = 0.0  # wall time of the block, set when it ends


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
  """Times a block in which nothing may be compiled; read `elapsed`.

  Raises:
    RuntimeError: something was compiled: run the same shapes before the block.
  """
  with counting() as count:
    yield count
  if count.programs:
    raise RuntimeError(
      f"{name}: a timed block must find its programs compiled; got "
      f"{count.programs} that took {count.seconds:.2f} of "
      f"{count.elapsed:.2f} s. run the same shapes once before"
      " the clock starts"
    )


def _record(event: str, duration_secs: float, **_: str | int) -> None:
  if event == _EVENT:
    with _lock:
      for count in _counts:
        count.programs += 1
        count.seconds += duration_secs


_lock = threading.Lock()
_counts: list[Count] = []
# Once a process, on import: jax never removes a listener.
jax.monitoring.register_event_duration_secs_listener(_record)


def versions() -> dict[str, str]:
  """Versions of the packages that decide what is compiled."""
  installed = {}
  for name in ("jax", "jaxlib", "libtpu", "flax", "optax"):
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      installed[name] = ""
  return installed
