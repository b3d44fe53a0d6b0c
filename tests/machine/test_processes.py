"""How processes meet, and the error when one does not come."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
import time
from typing import ClassVar

import psutil
import pytest

from fs_jax.machine import processes
from fs_jax.machine.pods import local

MEET = """
import fcntl, sys, time
from fs_jax.machine import processes
processes.start()
with open(sys.argv[1], "a") as lock:
  fcntl.flock(lock, fcntl.LOCK_EX)
  lock.write(f"{processes.is_first()}\\n")
"""


def environment(**values):
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return env | {"JAX_PLATFORMS": "cpu", **values}


def ran(program, env):
  return subprocess.run(
    [sys.executable, "-c", program],
    env=env,
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.mark.slow
@pytest.mark.parametrize(("index", "who"), [(0, "its peers"), (1, "the first")])
def test_a_peer_that_does_not_come_is_named(index, who):
  env = environment(
    JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{local._free_port()}",
    JAX_NUM_PROCESSES="2",
    JAX_PROCESS_ID=str(index),
    FS_JAX_PEER_TIMEOUT="2",
  )
  done = ran("from fs_jax.machine import processes; processes.start()", env)
  assert done.returncode == 1
  assert "all 2 must meet at 127.0.0.1:" in done.stderr
  assert f"within 2 s; got no word of {who}" in done.stderr
  assert "Check failure" not in done.stderr


@pytest.mark.slow
def test_one_may_wait_for_a_lock_that_another_holds(tmp_path):
  """Who holds it asks for its number: nobody else may be needed for that."""
  lock = tmp_path / "lock"
  job = local.Job([sys.executable, "-c", MEET, str(lock)], 2, 1, restarts=0)
  assert local.run(job, print) == 0
  assert sorted(lock.read_text().split()) == ["False", "True"]


ORPHAN = """
import os, sys, time
from fs_jax.machine import processes
processes.start()
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""


# Ends as its word says: "bad" input, "die", or "busy" with something else.
END = """
import os, signal, sys, time
from fs_jax.machine import processes
from launch import cli
def main(argv):
  "Nothing."
  processes.start()
  if argv[0] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
  if argv[0] == "busy":
    time.sleep(600)
  cli.take_argument([], "say what")
processes._HEARTBEAT, processes._MARGIN = 10, 5
cli.run(main, "")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ("words", "ends"),
  [
    ("bad bad bad", [2, 2, 2]),
    ("bad busy", [2]),
    ("bad die", [1]),  # ended by JAX or by us, whichever notices first
  ],
)
def test_bad_input_is_believed_where_no_peer_died(words, ends):
  """On a pod nobody sees all deaths, and code 2 is started by none again."""
  address = f"127.0.0.1:{local._free_port()}"
  started = [
    subprocess.Popen(
      [sys.executable, "-c", END, word],
      env=environment(
        JAX_COORDINATOR_ADDRESS=address,
        JAX_NUM_PROCESSES=str(len(words.split())),
        JAX_PROCESS_ID=str(index),
      ),
      stderr=subprocess.PIPE,
      text=True,
    )
    for index, word in enumerate(words.split())
  ]
  try:
    errors = [p.communicate(timeout=120)[1] for p in started[: len(ends)]]
  finally:
    for process in started:
      process.kill()
      process.wait()
      process.stderr.close()
  assert all("error: arguments: one is wanted" in error for error in errors)
  assert [p.returncode for p in started[: len(ends)]] == ends


@pytest.mark.slow
def test_without_its_supervisor_nobody_goes_on(tmp_path):
  wrote = tmp_path / "pid"
  job = f"local.Job([{sys.executable!r}, '-c', {ORPHAN!r}, {str(wrote)!r}], 1)"
  code = f"from fs_jax.machine.pods import local; local.run({job}, print)"
  supervisor = subprocess.Popen([sys.executable, "-c", code], env=environment())
  until = time.monotonic() + 120
  while not (wrote.exists() and wrote.read_text()):
    assert time.monotonic() < until
    time.sleep(0.1)
  orphan = psutil.Process(int(wrote.read_text()))
  supervisor.kill()
  supervisor.wait()
  with contextlib.suppress(psutil.NoSuchProcess):
    orphan.wait(timeout=60)
  assert not orphan.is_running()


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ({}, "needs JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
    (
      {"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
      "JAX_NUM_PROCESSES must be a whole number; got 'two'",
    ),
    (
      {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
      "must be in 0 to JAX_NUM_PROCESSES - 1 = 1; got 2",
    ),
  ],
)
def test_half_an_environment_is_refused(monkeypatch, values, words):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
  for name, value in values.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=words):
    processes.start()


def test_alone_there_is_nobody_to_wait_for():
  processes.start()
  with processes.first_then_others("anything"):
    assert processes.is_first()


ALLOCATE = """
import ctypes, threading
from fs_jax.machine import processes
processes.share_freed_memory()
def allocate(at):
  held = [bytes(1000) for _ in range(1000)]
  at.wait()
at = threading.Barrier(9)
threads = [threading.Thread(target=allocate, args=(at,)) for _ in range(8)]
for t in threads: t.start()
at.wait()
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize(
  ("set_to", "most"), [({}, 2), ({"MALLOC_ARENA_MAX": "3"}, 3)]
)
def test_threads_share_what_was_freed(set_to, most):
  """glibc reports how many arenas it made."""
  done = ran(ALLOCATE, environment(**set_to))
  assert done.returncode == 0
  assert done.stderr.count("Arena ") == most


@pytest.mark.slow
def test_hosts_that_do_not_meet_say_so():
  """A process that discovers its peers, as on a pod, names the host."""
  env = environment(
    FS_JAX_MULTIHOST="1",
    FS_JAX_PEER_TIMEOUT="2",
    SLURM_JOB_ID="7",
    SLURM_STEP_NODELIST="localhost",
    SLURM_NTASKS="2",
    SLURM_PROCID="1",
    SLURM_LOCALID="0",
  )
  done = ran("from fs_jax.machine import processes; processes.start()", env)
  assert done.returncode == 1
  assert "of all hosts must meet within 2 s; got no word" in done.stderr
  assert "FS_JAX_PEER_TIMEOUT=600 waits longer" in done.stderr


class Metadata(http.server.BaseHTTPRequestHandler):
  """A metadata server: no event, then no answer, then maintenance."""

  asked: ClassVar[list] = []

  def do_GET(self):
    self.asked.append((self.path, self.headers["Metadata-Flavor"]))
    times = len(self.asked)
    event = "NONE" if times < 7 else "TERMINATE_ON_HOST_MAINTENANCE"
    self.send_response(503 if 1 < times < 7 else 200)
    self.end_headers()
    self.wfile.write(event.encode())

  def log_message(self, *_):
    pass


def test_maintenance_of_a_host_is_a_notice(monkeypatch):
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  host = f"127.0.0.1:{server.server_address[1]}"
  monkeypatch.setenv("GCE_METADATA_HOST", host)
  monkeypatch.setattr(processes, "_ASK", 0.01)
  until = time.monotonic() + 30
  try:
    with processes.Notice() as notice:
      assert not notice.given(1)
      while not notice.given(2):
        assert time.monotonic() < until
        time.sleep(0.01)
  finally:
    server.shutdown()
    server.server_close()
  path = "/computeMetadata/v1/instance/maintenance-event"
  assert Metadata.asked == [(path, "Google")] * 7


def test_a_host_without_metadata_is_left_alone(monkeypatch):
  monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{local._free_port()}")
  monkeypatch.setattr(processes, "_ASK", 0.01)
  over = threading.Event()
  asks = threading.Thread(target=processes._await_maintenance, args=(over,))
  asks.start()
  asks.join(timeout=30)
  assert not asks.is_alive()
