"""The processes of a run: how they meet, wait and agree to stop.

Every process runs the same program on its own devices; the first one writes.
`python -m launch.local` starts them on one machine, a pod's engine on a pod.
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
SUPERVISOR = "FS_JAX_SUPERVISOR"  # its pid: its children end with it
MULTIHOST = "FS_JAX_MULTIHOST"  # a TPU VM does not tell that it has peers
_PATIENCE = "FS_JAX_PEER_TIMEOUT"  # seconds until a silent peer is dead
_PR_SET_PDEATHSIG = 1  # of prctl(2), Linux
_M_ARENA_MAX = -8  # of mallopt(3), glibc
_ARENAS = 2
_LONGEST = 7 * 24 * 3600  # seconds that the first process may take
_METADATA = "GCE_METADATA_HOST"  # overrides the metadata server's name
_ASK = 5.0  # seconds between two polls for maintenance
_MEETING, _HEARTBEAT = 300, 100  # seconds, JAX's defaults
_MARGIN = 15  # seconds until all know of a death, at most
_GOODBYE = 3.0  # seconds that the first process waits for the others


def start() -> None:
  """Joins the other processes of the run, if the environment says so.

  It joins if JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are
  set, or where JAX can discover its peers: in a SLURM step of several tasks, on
  GKE, and on a TPU VM with FS_JAX_MULTIHOST=1. A peer that does not join within
  five minutes, or falls silent later, ends the process with code 1, for a
  launcher to restart. FS_JAX_PEER_TIMEOUT=60 waits 60 seconds instead.

  Raises:
    ValueError: an incomplete environment.
  """
  if SUPERVISOR in os.environ:
    _leave_with(_integer(os.environ, SUPERVISOR))
  if _join(os.environ):
    # All processes initialise their devices here. Later, one might do so while
    # the others wait for it elsewhere, such as at the lock of a dataset build.
    jax.devices()


def _join(env: Mapping[str, str]) -> bool:
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
  """Initialises JAX's cluster; `known` is what JAX cannot discover."""
  meeting = _patience(env, _MEETING)
  # JAX alone would end the process with a stack trace that names no peer.
  late = threading.Timer(meeting, _give_up, (meeting,), known)
  late.daemon = True
  late.start()
  jax.distributed.initialize(
    initialization_timeout=2 * meeting,
    heartbeat_timeout_seconds=_patience(env, _HEARTBEAT),
    **known,
  )
  late.cancel()


def share_freed_memory() -> None:
  """Lets threads reuse the memory that others freed. Call it first.

  glibc gives threads their own arenas, up to eight a core, and no other thread
  allocates from them. Checkpoints are written by changing threads of a pool, so
  a run grew by a MiB for each of its first twelve saves; with two arenas, by a
  tenth of that. MALLOC_ARENA_MAX, if set, wins.
  """
  if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt is not None:
      mallopt(_M_ARENA_MAX, _ARENAS)


def _leave_with(supervisor: int) -> None:
  """Makes this process end with its supervisor, even one that is killed.

  A restarted run would otherwise write into the same folder. Nothing saved is
  lost.
  """
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != supervisor:  # it was already gone
    raise errors.Preempted


def _give_up(
  seconds: int,
  coordinator_address: str = "",
  num_processes: int = 0,
  process_id: int = 0,
) -> None:
  """Ends the process: no exception reaches its waiting main thread."""
  if coordinator_address:
    absent = "the first one" if process_id else "its peers"
    message = (
      f"all {num_processes} must meet at {coordinator_address} within "
      f"{seconds} s; got no word of {absent} in process {process_id}. see that "
      f"every one of them runs, with the same {COUNT}, and reaches that address"
    )
  else:
    message = (
      f"those of all hosts must meet within {seconds} s; got no word of some "
      f"on {socket.gethostname()}. see that every host runs, and reaches the "
      f"first one; {_PATIENCE}=600 waits longer"
    )
  sys.stderr.write(f"error: processes: {message}\n")
  sys.stderr.flush()
  os._exit(1)


def is_first() -> bool:
  """Whether this process is the one that writes files."""
  return jax.process_index() == 0


@contextlib.contextmanager
def first_then_others(name: str) -> Iterator[None]:
  """Runs the block in the first process, then in the others.

  The others find the work done.
  """
  if jax.process_count() == 1:
    yield
    return
  if not is_first():
    _wait(name)
  yield
  if is_first():
    _wait(name)


_meetings = itertools.count()


def _wait(name: str) -> None:
  """Waits for all processes, which pass the same barriers in the same order.

  `multihost_utils.sync_global_devices` is a collective of the devices, which on
  CPUs waits for 30 seconds only. This asks JAX's coordinator, which also ends
  processes that wait for one that died; only private names reach it.
  """
  client = distributed.global_state.client
  assert client is not None  # there are several processes
  client.wait_at_barrier(f"{name} {next(_meetings)}", 1000 * _LONGEST)


def all_live() -> bool:
  """Whether all processes live: a dead peer may be the cause of an error.

  If all processes meet the same error, this returns once all are here.
  Otherwise it waits for as long as a death may stay unnoticed. JAX may also end
  this process by itself, with code 1, when it notices one.
  """
  client = distributed.global_state.client
  assert client is not None  # there are several processes
  seconds = _patience(os.environ, _HEARTBEAT) + _MARGIN
  try:
    client.wait_at_barrier("an error that may be of all", 1000 * seconds)
  except jax.errors.JaxRuntimeError as error:
    # The processes that are not here are busy, not dead.
    return "DEADLINE_EXCEEDED" in str(error)
  if is_first():  # holds JAX's coordinator, whose answer others still need
    time.sleep(_GOODBYE)
  return True


class Notice:
  """Notices that the machine is being reclaimed: SIGTERM, or maintenance.

  A context manager: inside, the signal does not end the process; it is noticed
  after a step, the same one in all processes. A second signal ends the process
  at once. Maintenance of a TPU's host is announced by its metadata server only;
  a thread that polls the server sends the signal.
  """

  def __init__(self) -> None:
    self._given = False
    self._over = threading.Event()
    self._before: object = None

  def __enter__(self) -> "Notice":
    # With several processes JAX listens, and tells all of them.
    self._own = jax.process_count() == 1 and (
      threading.current_thread() is threading.main_thread()
    )
    if self._own:
      self._before = signal.signal(signal.SIGTERM, self._hear)
    if jax.default_backend() == "tpu" or _METADATA in os.environ:
      poller = threading.Thread(
        target=_await_maintenance, args=(self._over,), daemon=True
      )
      poller.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._over.set()
    if self._own:
      signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

  def given(self, step: int) -> bool:
    """Whether to stop. Every process calls this once after each step."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._given

  def _hear(self, *_: object) -> None:
    if self._given:
      raise errors.Preempted
    self._given = True


def _await_maintenance(over: threading.Event) -> None:
  """Sends this process SIGTERM once its host is to be taken down.

  Polls the host's metadata server, if there is one.
  """
  host = os.environ.get(_METADATA, "metadata.google.internal")
  ask = urllib.request.Request(
    f"http://{host}/computeMetadata/v1/instance/maintenance-event",
    headers={"Metadata-Flavor": "Google"},
  )
  failures = 0
  answered = False  # a server that answered once exists, however silent later
  while (answered or failures < 3) and not over.is_set():
    try:
      with urllib.request.urlopen(ask, timeout=5) as answer:
        event = answer.read().decode().strip()
    except OSError:
      failures += 1
    else:
      answered = True
      if event.startswith("TERMINATE"):
        sys.stderr.write(f"this host is about to be taken away: {event}\n")
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


def _patience(env: Mapping[str, str], default: int) -> int:
  return _integer(env, _PATIENCE) if _PATIENCE in env else default


def _integer(env: Mapping[str, str], name: str) -> int:
  try:
    return int(env[name])
  except ValueError:
    raise ValueError(
      f"environment: {name} must be a whole number; got {env[name]!r}. "
      "set it to a number such as 2, or unset it"
    ) from None
