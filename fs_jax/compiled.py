"""Compiled programs kept on disk: a program that starts again, or a stage that
runs what another one ran, loads them instead of compiling them anew.
"""

import hashlib
import os
import pathlib
import platform

import jax
from etils import epath

FOLDER = "compiled"
_CPU = pathlib.Path("/proc/cpuinfo")
_SECONDS = 0.2  # what compiles faster is not worth a file


def keep(workdir: epath.PathLike) -> None:
  """Keeps them in `workdir`, unless JAX_COMPILATION_CACHE_DIR names a folder.

  A damaged or unwritable file costs a compilation and nothing else.
  """
  if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return
  where = epath.Path(workdir).absolute() / FOLDER / _machine()
  jax.config.update("jax_compilation_cache_dir", os.fspath(where))
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
