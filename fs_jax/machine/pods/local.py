"""Several real processes of one run on this machine, restarted together.

Does on a laptop what a pod's engine does. The processes meet over the loopback
(gloo). One that dies takes the others with it, since each holds a part of the
state; then all of them restart from the last checkpoint.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NamedTuple

from fs_jax.machine import errors, processes

FINAL = (*errors.FINAL, errors.INTERRUPTED)
_INTENDED = (errors.DONE, errors.PREEMPTED, *FINAL)  # any other is a crash
_FATAL = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)
_POLL = 0.1  # seconds between two checks for processes that ended
_LAST_LINES = 5.0  # seconds for the lines of a process that has ended


class Job(NamedTuple):
  """What to run, and for how long to wait."""

  command: Sequence[str]  # the same for every process
  processes: int = 2
  devices: int = 0  # virtual CPU devices of each; 0 = the real devices
  restarts: int = 5  # after crashes; being told to stop does not count
  grace: float = 30.0  # seconds for the others to end by themselves


def run(job: Job, say: Callable[[str], None]) -> int:
  """Runs the job to its end; returns its exit code.

  SIGTERM is passed on: every process saves, and the code is 75.

  Raises:
    ValueError: fewer than one process.
  """
  if job.processes < 1:
    raise ValueError(
      f"processes: must be at least 1; got {job.processes}. use 1 or more"
    )
  stopped = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
  try:
    crashes = 0
    while True:
      code = _run_once(job, stopped)
      if code == errors.DONE or code in FINAL:
        return code
      if stopped.is_set():  # some may have been too young to hear it
        return errors.PREEMPTED
      if code != errors.PREEMPTED:
        crashes += 1
        say(
          f"a process {_describe(code)} ({crashes} of {job.restarts} crashes)"
        )
        if crashes > job.restarts:
          return 1
        time.sleep(min(crashes, 10))
      say(f"starting {job.processes} processes again")
  finally:
    signal.signal(signal.SIGTERM, before)


def _run_once(job: Job, stopped: threading.Event) -> int:
  """Runs every process once; returns the code that best explains the end."""
  port = _free_port()
  started = [_start(job, i, port) for i in range(job.processes)]
  alive = {i: process for i, (process, _) in enumerate(started)}
  codes: list[int] = []
  deadline = None
  try:
    while alive:
      for index, process in list(alive.items()):
        code = process.poll()
        if code is not None:
          del alive[index]
          codes.append(code)
      if deadline is None and (stopped.is_set() or any(codes)):
        deadline = time.monotonic() + job.grace
        for process in alive.values():
          process.send_signal(signal.SIGTERM)
      # After a crash the others wait for messages that never come.
      crashed = any(c not in _INTENDED for c in codes)
      over = deadline is not None and time.monotonic() > deadline
      if alive and (crashed or over or set(codes) & set(FINAL)):
        _kill(alive)
        return _most_telling(codes)
      time.sleep(_POLL)
  finally:
    _kill(alive)
    for _, copier in started:
      copier.join(_LAST_LINES)
  return _most_telling(codes)


def _most_telling(codes: Sequence[int]) -> int:
  """The exit code, of several, that decides what happens next.

  A process that was killed may leave others with an error that looks like bad
  input; one with bad input makes others abort, and nothing worse.
  """
  for code in codes:
    if -code in _FATAL:
      return code
  for code in (*FINAL, errors.PREEMPTED):
    if code in codes:
      return code
  return next(
    (c for c in codes if c != errors.DONE),
    errors.DONE if codes else errors.PREEMPTED,
  )


def _start(
  job: Job, index: int, port: int
) -> tuple[subprocess.Popen, threading.Thread]:
  """Starts a process, and the thread that copies what it prints."""
  env = os.environ | {
    processes.ADDRESS: f"127.0.0.1:{port}",
    processes.COUNT: str(job.processes),
    processes.INDEX: str(index),
    processes.SUPERVISOR: str(os.getpid()),
  }
  if job.devices:
    env["JAX_PLATFORMS"] = "cpu"
    env["XLA_FLAGS"] = _with_devices(env, job.devices)
  env["PYTHONUNBUFFERED"] = "1"
  first = index == 0  # a terminal shows its progress
  process = subprocess.Popen(
    job.command,
    env=env,
    stdout=subprocess.PIPE,
    stderr=None if first else subprocess.STDOUT,
    text=True,
    errors="replace",
  )
  assert process.stdout is not None
  output, prefix = (sys.stdout, "") if first else (sys.stderr, f"[{index}] ")
  copier = threading.Thread(
    target=_copy_lines, args=(process.stdout, output, prefix), daemon=True
  )
  copier.start()
  return process, copier


def _copy_lines(lines: IO[str], output: IO[str], prefix: str) -> None:
  with lines:
    for line in lines:
      if not line.startswith("[Gloo] Rank"):  # one for each connection
        output.write(prefix + line)
        output.flush()


def _with_devices(env: Mapping[str, str], count: int) -> str:
  name = "--xla_force_host_platform_device_count"
  others = [f for f in env.get("XLA_FLAGS", "").split() if name not in f]
  return " ".join([*others, f"{name}={count}"])


def _kill(alive: Mapping[int, subprocess.Popen]) -> None:
  for process in alive.values():
    process.kill()
  for process in alive.values():
    process.wait()


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _describe(code: int) -> str:
  if code < 0:
    return f"died of {signal.Signals(-code).name}"
  return f"ended with code {code}"
