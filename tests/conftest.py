"""What every test runs on: eight virtual CPU devices and checked shapes.

The environment has to be set before jax is imported, so nothing of fs_jax is
imported above it. Tests that start a process inherit the same environment.
"""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
# One folder of compiled programs for all workers, their processes and later
# runs. Three tiny stages take 55 CPU seconds where it is warm, 92 without it.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.fspath(
  pathlib.Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
# Tests compile for longer than they run: a third of the time without these.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    # Eight devices share few cores: a late one is slow, not dead.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
  ]
).strip()

from typing import ClassVar

import fsspec
import jax
import jaxtyping
import pytest
from fsspec.implementations import memory

# Shapes and types of every call into these modules are checked. Modules that
# define pytree dataclasses stay out: jax rebuilds those with non-arrays inside.
jaxtyping.install_import_hook(
  [
    "fs_jax.models",
    "fs_jax.train.losses",
    "fs_jax.train.ring",
    "fs_jax.train.tiles",
  ],
  "beartype.beartype",
)

# A broadcast that adds an axis has to be written out.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_report_header():
  from tests.support import (
    versions,  # fs_jax must not be imported above the hook
  )

  return versions.describe()


def pytest_collection_modifyitems(items):
  """Marks what needs trained stages; skips what was not tried on versions.

  What compilers may change is only promised where it was tried.
  """
  from tests.support import versions

  other = None if versions.find_set() else versions.describe()
  for item in items:
    if "trained" in item.fixturenames:
      item.add_marker("slow")
    if other and item.get_closest_marker("bitwise"):
      item.add_marker(pytest.mark.skip(reason=f"bitwise: {other}"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """A workdir with all stages and a gallery: copy it before you change it."""
  from tests.support import inprocess

  return inprocess.trained(tmp_path_factory)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
  """Tests leave nothing in the user's ~/.cache; processes inherit theirs."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.fixture
def bucket():
  """Whatever is under gs:// lies in this process's memory."""

  class Bucket(memory.MemoryFileSystem):
    protocol = "gs"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
      name = os.fspath(path).removeprefix("gs://").strip("/")
      return f"/{name}" if name else ""

  for protocol in ("gs", "gcs"):
    fsspec.register_implementation(protocol, Bucket, clobber=True)
  return Bucket
