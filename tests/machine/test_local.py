"""The supervisor: what it starts again, and what it leaves alone."""

import os
import signal
import sys
import threading
import time

import pytest

from fs_jax.machine.pods import local

# Ends with the codes that its process's file lists, one a start.
PROGRAM = """
import os, pathlib, signal, sys, time
index = os.environ["JAX_PROCESS_ID"]
path = pathlib.Path(sys.argv[1]) / index
codes = path.read_text().split()
path.write_text(" ".join(codes[1:]))
with open(sys.argv[1] + "/starts", "a") as file:
  file.write(index + " " + os.environ["JAX_COORDINATOR_ADDRESS"] + "\\n")
if codes[0] == "wait":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  time.sleep(60)
if codes[0] == "deaf":
  time.sleep(60)
if codes[0] == "kill":
  os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(codes[0]))
""".replace("\\\\", "\\")


def run(tmp_path, *codes, **how):
  """Exit code, starts of all processes, messages, and addresses."""
  for index, words in enumerate(codes):
    (tmp_path / str(index)).write_text(words)
  messages = []
  command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
  job = local.Job(command, len(codes), **{"grace": 10.0} | how)
  code = local.run(job, messages.append)
  starts = (tmp_path / "starts").read_text().splitlines()
  return code, len(starts), "\n".join(messages), {x.split()[1] for x in starts}


def test_what_is_done_is_done(tmp_path):
  assert run(tmp_path, "0", "0")[:3] == (0, 2, "")


def test_a_dead_peer_takes_the_others_and_all_start_again(tmp_path):
  code, starts, messages, addresses = run(tmp_path, "wait 0", "kill 0")
  assert (code, starts) == (0, 4)
  assert "died of SIGKILL (1 of 5 crashes)" in messages
  assert len(addresses) == 2  # the old port may still be taken


def test_preempted_starts_again_and_is_no_crash(tmp_path):
  # One process: a second would be told to stop before it has read its codes.
  code, starts, messages, _ = run(tmp_path, "75 75 0", restarts=0)
  assert (code, starts) == (0, 3)
  assert "crash" not in messages


@pytest.mark.parametrize("code", [2, 3])
def test_what_would_end_so_again_is_left_alone(tmp_path, code):
  got, starts, *_ = run(tmp_path, str(code), "wait")
  assert got == code
  assert starts <= 2  # the other may be stopped before it says that it began


def test_crashes_are_counted(tmp_path):
  assert run(tmp_path, "1 1 1", restarts=1)[:2] == (1, 2)


def test_being_told_to_stop_is_passed_on(tmp_path):
  def stop():
    while not (tmp_path / "starts").exists():
      time.sleep(0.05)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=stop, daemon=True).start()
  before = signal.getsignal(signal.SIGTERM)
  assert run(tmp_path, "wait", "wait")[:2] == (75, 2)
  assert signal.getsignal(signal.SIGTERM) == before


def test_one_too_young_to_hear_is_told_to_stop_all_the_same(tmp_path):
  """It still imports when SIGTERM comes, and dies of it: that is no crash."""

  def stop():
    while len((tmp_path / "starts").read_text().split()) < 4:
      time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)

  (tmp_path / "starts").touch()
  threading.Thread(target=stop, daemon=True).start()
  assert run(tmp_path, "deaf", "deaf")[:2] == (75, 2)


@pytest.mark.parametrize(
  ("codes", "telling"),
  [
    ([0, 0], 0),
    ([2, -signal.SIGKILL], -signal.SIGKILL),  # lost it while it saved
    ([-signal.SIGABRT, 2], 2),  # gave up for want of a peer
    ([75, -signal.SIGTERM], 75),
    ([3, 1], 3),
    ([1, -signal.SIGTERM], 1),
    ([], 75),
  ],
)
def test_what_several_codes_say(codes, telling):
  assert local._most_telling(codes) == telling


def test_no_process_is_refused():
  with pytest.raises(ValueError, match="processes: must be at least 1; got 0"):
    local.run(local.Job(["true"], 0), print)
