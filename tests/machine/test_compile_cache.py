"""Programs are compiled once for a user, kept where nobody else writes, and
never in what is timed."""

import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fs_jax.machine import compile_cache

PROGRAM = """
import jax, jax.numpy as jnp
from fs_jax.machine import compile_cache
compile_cache._SECONDS = 0.0
compile_cache.enable()
with compile_cache.counting() as count:
  x = jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.ones((8, 8)))
print(float(x), count.programs > 0)
"""


def files_after_a_run(folder, **environ):
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    env=os.environ
    | {
      "JAX_COMPILATION_CACHE_DIR": "",
      "XDG_CACHE_HOME": os.fspath(folder),
    }
    | environ,
    capture_output=True,
    text=True,
    check=True,
  )
  programs = {p.name for p in folder.rglob("*-cache")}
  return programs, done.stdout


@pytest.mark.slow
def test_a_second_start_loads_what_the_first_compiled(tmp_path):
  first, output = files_after_a_run(tmp_path / "a")
  assert first
  assert output.endswith("True\n")  # and so say those that only load
  assert files_after_a_run(tmp_path / "a") == (first, output)
  (tmp_path / "a").rename(tmp_path / "moved")
  assert files_after_a_run(tmp_path / "moved") == (first, output)
  for path in (tmp_path / "moved").rglob("*-cache"):
    path.write_bytes(path.read_bytes()[:9])  # killed while it was written
  assert files_after_a_run(tmp_path / "moved") == (first, output)


@pytest.mark.slow
def test_a_folder_that_others_may_write_to_is_not_used(tmp_path):
  folder = tmp_path / "fs_jax" / "compiled"
  folder.mkdir(parents=True)
  folder.chmod(0o777)
  programs, _ = files_after_a_run(tmp_path)
  assert not programs
  folder.chmod(0o700)
  programs, _ = files_after_a_run(tmp_path)
  assert programs


@pytest.mark.slow
def test_a_folder_that_the_environment_names_is_used(tmp_path):
  own = tmp_path / "own"
  environ = {"JAX_COMPILATION_CACHE_DIR": os.fspath(own)}
  environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  assert files_after_a_run(tmp_path / "a", **environ)[0] == set()
  assert any(own.rglob("*-cache"))


def fresh():
  """A function that nobody has compiled."""
  return jax.jit(lambda x: x * 2)


def test_programs_are_counted_once_for_each_shape():
  double = fresh()
  with compile_cache.counting() as both:
    with compile_cache.counting() as first:
      double(np.ones(3, np.float32))
    double(np.ones(3, np.float32))
    with compile_cache.counting() as second:
      double(np.ones(4, np.float32))
  double(np.ones(5, np.float32))  # when nobody counts
  assert (first.programs, second.programs, both.programs) == (1, 1, 2)
  assert 0 < first.seconds < both.seconds < both.elapsed
  assert both.elapsed > first.elapsed + second.elapsed


def test_what_runs_op_by_op_and_ahead_of_time_is_counted():
  with compile_cache.counting() as count:
    jnp.tan(np.full((3, 1, 7), 0.5, np.float32)).block_until_ready()
  assert count.programs > 0
  with compile_cache.counting() as count:
    fresh().lower(np.ones(3, np.float32)).compile()
  assert count.programs == 1


def test_programs_of_all_threads_are_counted():
  with compile_cache.counting() as count:
    threads = [
      threading.Thread(target=lambda: fresh()(np.ones(3, np.float32)))
      for _ in range(5)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert count.programs == 5
  assert not compile_cache._counts


def test_nothing_compiles_in_what_is_timed():
  double = fresh()
  with (
    pytest.raises(RuntimeError, match=r"^doubling: .* got 1 that took .* run"),
    compile_cache.timed("doubling"),
  ):
    double(np.ones(3, np.float32))
  with compile_cache.timed("doubling") as region:
    double(np.ones(3, np.float32))
  assert region.elapsed > 0 and region.programs == 0
  with (
    pytest.raises(KeyError),
    compile_cache.timed("doubling"),
  ):  # what came first
    double(np.ones(4, np.float32))
    raise KeyError
  assert not compile_cache._counts
