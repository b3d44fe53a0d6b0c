"""Programs are compiled once for a workdir, and loaded wherever it goes."""

import os
import subprocess
import sys

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from fs_jax import compiled
compiled._SECONDS = 0.0
compiled.keep(sys.argv[1])
x = jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.ones((8, 8)))
print(float(x))
"""


def files_after_a_run(folder, **environ):
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, os.fspath(folder)],
    env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "true"} | environ,
    capture_output=True,
    text=True,
    check=True,
  )
  made = {p.name for p in folder.rglob("*-cache")}
  return made, done.stdout


def test_a_second_start_loads_what_the_first_compiled(tmp_path):
  first, said = files_after_a_run(tmp_path / "a")
  assert first
  assert files_after_a_run(tmp_path / "a") == (first, said)
  (tmp_path / "a").rename(tmp_path / "moved")
  assert files_after_a_run(tmp_path / "moved") == (first, said)
  for path in (tmp_path / "moved").rglob("*-cache"):
    path.write_bytes(path.read_bytes()[:9])  # killed while it was written
  assert files_after_a_run(tmp_path / "moved") == (first, said)


def test_a_folder_that_the_environment_names_is_used(tmp_path):
  own = tmp_path / "own"
  environ = {"JAX_COMPILATION_CACHE_DIR": os.fspath(own)}
  environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  assert files_after_a_run(tmp_path / "a", **environ)[0] == set()
  assert any(own.rglob("*-cache"))
