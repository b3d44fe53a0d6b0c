"""The processes of a run: how they meet, wait and agree to stop.

Every process runs the same program on its own devices; the first one writes. On
one machine `python -m launch.local` starts them, on a pod its engine does.
"""

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from fs_jax.machine import commands, errors

ADDRESS, COUNT, INDEX = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)
SUPERVISOR = "FS_JAX_SUPERVISOR"  # its process: without it nobody goes on
MULTIHOST = "FS_JAX_MULTIHOST"  # says what a TPU VM does not: more hosts work
_PATIENCE = "FS_JAX_PEER_TIMEOUT"  # seconds until a silent peer is dead
_PR_SET_PDEATHSIG = 1  # of prctl(2), Linux
_M_ARENA_MAX = -8  # of mallopt(3), glibc
_ARENAS = 2
_LONGEST = 7 * 24 * 3600  # seconds that the first process may take
_METADATA = "GCE_METADATA_HOST"  # instead of the server that hosts know
_ASK = 5.0  # seconds between two questions of maintenance
_MEETING, _HEARTBEAT = 300, 100  # seconds; JAX's own
_MARGIN = 15  # seconds that the news of a death takes, at most
_GOODBYE = 3.0  # seconds that the first process stays for the others


def start() -> None:
  """Joins the other processes of the run, if the environment says so.

  It does with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
  where JAX finds the rest by itself: in a SLURM step of several tasks, on GKE,
  and on a TPU VM with FS_JAX_MULTIHOST=1. A peer that does not come within five
  minutes ends the process with code 1, as does one that falls silent later:
  that is for a launcher to restart. FS_JAX_PEER_TIMEOUT=60 waits 60 seconds.

  Raises:
    ValueError: an incomplete environment.
  """
  if SUPERVISOR in os.environ:
    _leave_with(_integer(os.environ, SUPERVISOR))
  if _joined(os.environ):
    # All of them look for their devices now: later, one might do so while the
    # others wait for it elsewhere, as at the lock of a dataset being made.
    jax.devices()


def _joined(env: Mapping[str, str]) -> bool:
  if ADDRESS not in env:
    if _several_hosts(env):
      _meet(env)
      return True
    return False
  missing = [name for name in (COUNT, INDEX) if name not in env]
  if missing:
    raise ValueError(
      f"environment: {ADDRESS} needs {COUNT} and {INDEX} beside it; got no "
      f"{missing[0]}. set it, or start with "
      f"{commands.program('local')}"
    )
  count, index = (_integer(env, name) for name in (COUNT, INDEX))
  if not 0 <= index < count:
    raise ValueError(
      f"environment: {INDEX} must be in 0 to {COUNT} - 1 = {count - 1}; got "
      f"{index}. give each process its own"
    )
  _meet(
    env,
    coordinator_address=env[ADDRESS],
    num_processes=count,
    process_id=index,
  )
  return True


def _meet(env: Mapping[str, str], **known: Any) -> None:
  """`known`: what JAX does not find by itself."""
  meeting = _patience(env, _MEETING)
  # JAX would end the process with a stack trace and no word of who is missing.
  late = threading.Timer(meeting, _alone, (meeting,), known)
  late.daemon = True
  late.start()
  jax.distributed.initialize(
    initialization_timeout=2 * meeting,
    heartbeat_timeout_seconds=_patience(env, _HEARTBEAT),
    **known,
  )
  late.cancel()


def share_freed_memory() -> None:
  """Lets what one thread freed be used by the others: call it first.

  glibc gives threads arenas of their own, eight a core, which nobody else
  allocates from. Each checkpoint is written by other threads of a pool, so that
  a run grew by a MiB a save for its first twelve; with two arenas by a tenth.
  MALLOC_ARENA_MAX, if it is set, is left as it is.
  """
  if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt is not None:
      mallopt(_M_ARENA_MAX, _ARENAS)


def _leave_with(supervisor: int) -> None:
  """Ends with the supervisor, even with one that is killed: whoever starts the
  run again would write into the same folder. Nothing saved is lost.
  """
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != supervisor:  # gone before that
    raise errors.Preempted


def _alone(
  seconds: int,
  coordinator_address: str = "",
  num_processes: int = 0,
  process_id: int = 0,
) -> None:
  """Ends the process, whose main thread waits where no exception reaches it."""
  if coordinator_address:
    who = "the first one" if process_id else "its peers"
    said = (
      f"all {num_processes} must meet at {coordinator_address} within "
      f"{seconds} s; got no word of {who} in process {process_id}. see that "
      f"every one of them runs, with the same {COUNT}, and reaches that address"
    )
  else:
    said = (
      f"those of all hosts must meet within {seconds} s; got no word of some "
      f"on {socket.gethostname()}. see that every host runs, and reaches the "
      f"first one; {_PATIENCE}=600 waits longer"
    )
  sys.stderr.write(f"error: processes: {said}\n")
  sys.stderr.flush()
  os._exit(1)


def is_first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


@contextlib.contextmanager
def first_then_others(what: str) -> Iterator[None]:
  """The first process does what is inside, then the others find it done."""
  if jax.process_count() == 1:
    yield
    return
  if not is_first():
    _wait(what)
  yield
  if is_first():
    _wait(what)


_meetings = itertools.count()


def _wait(what: str) -> None:
  """Until all processes are here; each of them comes to the same ones in turn.

  `multihost_utils.sync_global_devices` is a collective of the devices, and a
  CPU's waits for its peers for 30 seconds. This asks JAX's coordinator, which
  also ends those that wait for one that died; only private names reach it.
  """
  client = distributed.global_state.client
  assert client is not None  # there are several processes
  client.wait_at_barrier(f"{what} {next(_meetings)}", 1000 * _LONGEST)


def all_live() -> bool:
  """Whether no process has died: what one of them met may be its doing.

  An error that is the same for all of them is known to be so once all are here.
  Else this waits for as long as a death may stay unheard. When JAX hears of one
  it may also end this process by itself, with code 1.
  """
  client = distributed.global_state.client
  assert client is not None  # there are several processes
  seconds = _patience(os.environ, _HEARTBEAT) + _MARGIN
  try:
    client.wait_at_barrier("an error that may be of all", 1000 * seconds)
  except jax.errors.JaxRuntimeError as error:
    # Those that are not here are busy: none of them is dead.
    return "DEADLINE_EXCEEDED" in str(error)
  if is_first():  # JAX's coordinator goes with it: others have yet to be told
    time.sleep(_GOODBYE)
  return True


class Notice:
  """Whether the machine is about to be taken away: SIGTERM, or maintenance.

  A context: inside, the signal no longer ends the process; it is heard after
  the step, by all processes after the same one. A second one ends at once.
  Maintenance of a TPU's host is announced by its metadata server alone; what
  hears it there sends the signal.
  """

  def __init__(self) -> None:
    self._given = False
    self._over = threading.Event()
    self._before: object = None

  def __enter__(self) -> "Notice":
    # With several processes JAX listens and carries the word to all of them.
    self._own = jax.process_count() == 1 and (
      threading.current_thread() is threading.main_thread()
    )
    if self._own:
      self._before = signal.signal(signal.SIGTERM, self._hear)
    if jax.default_backend() == "tpu" or _METADATA in os.environ:
      awaits = threading.Thread(
        target=_await_maintenance, args=(self._over,), daemon=True
      )
      awaits.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._over.set()
    if self._own:
      signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

  def given(self, step: int) -> bool:
    """To be asked once after each step, by every process."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._given

  def _hear(self, *_: object) -> None:
    if self._given:
      raise errors.Preempted
    self._given = True


def _await_maintenance(over: threading.Event) -> None:
  """Sends this process SIGTERM once its host is to be taken down.

  Asks the host's metadata server, if there is one.
  """
  host = os.environ.get(_METADATA, "metadata.google.internal")
  ask = urllib.request.Request(
    f"http://{host}/computeMetadata/v1/instance/maintenance-event",
    headers={"Metadata-Flavor": "Google"},
  )
  failures = 0
  met = False  # once it answered it is there, however long it is silent
  while (met or failures < 3) and not over.is_set():
    try:
      with urllib.request.urlopen(ask, timeout=5) as answer:
        said = answer.read().decode().strip()
    except OSError:
      failures += 1
    else:
      met = True
      if said.startswith("TERMINATE"):
        sys.stderr.write(f"this host is about to be taken away: {said}\n")
        os.kill(os.getpid(), signal.SIGTERM)
        return
    over.wait(_ASK)


def _several_hosts(env: Mapping[str, str]) -> bool:
  return (
    env.get(MULTIHOST, "") not in ("", "0")
    or (int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in env)
    or "," in env.get("TPU_WORKER_HOSTNAMES", "")
    or "MEGASCALE_COORDINATOR_ADDRESS" in env
  )


def _patience(env: Mapping[str, str], otherwise: int) -> int:
  return _integer(env, _PATIENCE) if _PATIENCE in env else otherwise


def _integer(env: Mapping[str, str], name: str) -> int:
  try:
    return int(env[name])
  except ValueError:
    raise ValueError(
      f"environment: {name} must be a whole number; got {env[name]!r}. "
      "change it"
    ) from None
