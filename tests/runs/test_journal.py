"""What a run says: no step twice, no half line, no number that is none."""

import contextlib
import errno
import json
import os
import sys
import threading

import numpy as np
import pytest
from etils import epath

from fs_jax.machine import console, errors, processes
from fs_jax.runs import journal, layout, uploads

WINDOW = [{"loss": 2.0, "grad_norm": 1.0}, {"loss": 4.0, "grad_norm": 3.0}]


@pytest.fixture
def folder(tmp_path):
  (tmp_path / layout.METRICS).write_text(
    "".join(json.dumps({"step": s, "loss": s / 8}) + "\n" for s in (2, 4, 6))
  )
  return tmp_path


@pytest.fixture
def log(tmp_path):
  made = journal.Journal(tmp_path, "fast", 0, 10)
  yield made
  made.close()


def read(folder):
  """Lines but those that say when a process started."""
  return [x for x in journal.read(folder) if x.get("split") != journal.START]


def steps(folder):
  return [line["step"] for line in read(folder)]


def test_a_folder_of_a_store_gets_whole_files(bucket):
  """Nothing can be appended there: lines and events are written together."""
  where = epath.Path("gs://bucket/W/fast")
  (where / layout.METRICS).write_text('{"step": 2, "split": "train"}\n')
  log = journal.Journal(where, "fast", 4, 10)
  log.train(6, WINDOW, 8)
  assert steps(where) == [2]  # at the next upload
  log.flush()
  assert steps(where) == [2, 6]
  log.train(8, WINDOW, 8)
  log.close()
  assert steps(where) == [2, 6, 8]
  (events,) = (where / "tb").iterdir()
  assert len(events.read_bytes()) > 500


def test_nobody_waits_for_a_slow_store(bucket, monkeypatch):
  """Uploads are one at a time, beside the training; a save waits for all."""
  began, goes_on, sent = threading.Event(), threading.Event(), []

  def slowly(path, text):
    began.set()
    assert goes_on.wait(60)
    sent.append(text.count('"split": "train"'))

  where = epath.Path("gs://bucket/W/fast")
  log = journal.Journal(where, "fast", 0, 10)
  log.flush()
  monkeypatch.setattr(uploads, "EVERY", -1.0)
  monkeypatch.setattr(uploads.files, "write_text", slowly)
  log.train(2, WINDOW, 8)
  assert began.wait(60)
  for step in (4, 6, 8):
    log.train(step, WINDOW, 8)
  assert sent == []
  goes_on.set()
  log.flush()
  assert sent == [1, 4]
  log.close()


class HttpError(Exception):
  """As clients of stores have them: of no kind that Python knows."""


@pytest.mark.parametrize("kind", [OSError, HttpError])
def test_a_store_that_failed_for_a_while_has_all_lines(
  bucket, monkeypatch, kind
):
  """Only a save insists: it must not be known before its lines are."""
  monkeypatch.setattr(uploads, "EVERY", -1.0)
  where = epath.Path("gs://bucket/W/fast")
  log = journal.Journal(where, "fast", 0, 10)
  with monkeypatch.context() as during:

    def fails(path, text):
      raise kind("503")

    during.setattr(uploads.files, "write_text", fails)
    log.train(2, WINDOW, 8)
    with pytest.raises(RuntimeError, match=r"must answer; got 503. start ag"):
      log.flush()
  log.train(4, WINDOW, 8)
  log.flush()
  assert steps(where) == [2, 4]
  with monkeypatch.context() as during:

    def refuses(path, text):
      raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    during.setattr(uploads.files, "write_text", refuses)
    with pytest.raises(PermissionError):  # a user has to mend that
      log.flush()
  log.close()


@pytest.mark.parametrize(
  ("n", "last", "due"),
  [
    (3, 10, [3, 6, 9, 10]),
    (5, 10, [5, 10]),
    (1, 3, [1, 2, 3]),
    (20, 10, [10]),
    (0, 10, []),
  ],
)
def test_every_is_due_at_multiples_and_at_the_end(n, last, due):
  at = [step for step in range(1, last + 1) if journal.every(n, step, last)]
  assert at == due


def test_nothing_written_is_nothing_read(tmp_path):
  assert journal.read(tmp_path) == []


def test_a_last_line_cut_short_is_left_out(folder):
  with open(folder / layout.METRICS, "a") as file:
    file.write('{"step": 8, "lo')
  assert steps(folder) == [2, 4, 6]


def test_a_broken_line_in_the_middle_is_named(folder):
  path = folder / layout.METRICS
  path.write_text(path.read_text().replace('{"step": 4', '{"step" 4'))
  with pytest.raises(ValueError, match=r'line 2 must be JSON; got .*"step" 4'):
    journal.read(folder)


@pytest.mark.parametrize(
  ("start", "kept"), [(0, []), (3, [2]), (4, [2, 4]), (9, [2, 4, 6])]
)
def test_lines_past_the_checkpoint_are_dropped(folder, start, kept):
  before = (folder / layout.METRICS).read_text().splitlines()
  with open(folder / layout.METRICS, "a") as file:
    file.write('{"step": 8, "lo')
  log = journal.Journal(folder, "fast", start, 10)
  after = (folder / layout.METRICS).read_text().splitlines()
  assert after[:-1] == before[: len(kept)]
  assert json.loads(after[-1])["split"] == journal.START
  log.write(start + 1, "train", {"loss": 1.0})  # starts a line of its own
  log.close()
  assert steps(folder) == [*kept, start + 1]


def test_train_writes_means_of_the_window(log, tmp_path):
  means = log.train(2, WINDOW, 16)
  (line,) = read(tmp_path)
  assert line["step"] == 2 and line["split"] == "train"
  assert line["loss"] == means["loss"] == 3.0
  assert line["grad_norm"] == 2.0
  assert line["examples_per_second"] > 0
  assert line["time"] > 1e9


def test_rates_count_the_examples_of_the_window_only(log, monkeypatch):
  now = log.clock._since
  monkeypatch.setattr(journal.time, "perf_counter", lambda: now + 4)
  assert log.train(2, WINDOW, 16)["examples_per_second"] == 2 * 16 / 4
  monkeypatch.setattr(journal.time, "perf_counter", lambda: now + 5)
  assert log.train(3, WINDOW[:1], 16)["examples_per_second"] == 16


def test_a_line_says_where_the_time_went(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(journal.time, "perf_counter", lambda: now[0])
  monkeypatch.setattr(journal.time, "time", lambda: 1000 + now[0])
  log = journal.Journal(tmp_path, "fast", 0, 10, flops=3e12, peak=1e13)

  def takes(seconds):
    now[0] += seconds

  takes(10)  # to compile
  log.begin()
  for on, seconds in (
    (journal.DATA, 1),
    (journal.SAVING, 4),
    (journal.VALIDATION, 2),
  ):
    with log.clock.spent(on):
      takes(seconds)
  takes(3)
  got = log.train(4, WINDOW, 16)
  log.close()
  assert got["step_seconds"] == 4 / 2  # neither saving nor validation
  assert got["step_data_seconds"] == 1 / 2
  assert got["step_host_seconds"] == 3 / 2
  assert got["eta_seconds"] == 2 * (10 - 4)
  assert got["goodput"] == pytest.approx(6 / 20)  # ten compiled, four saved
  assert got["tflops_per_second"] == pytest.approx(2 * 3 / 4)
  assert got["mfu"] == pytest.approx(2 * 3e12 / 4 / 1e13)
  assert got["host_memory_gib"] > 0.01
  # Started again, what was of use stays so, and the pause does not count.
  takes(20)
  log = journal.Journal(tmp_path, "fast", 4, 10)
  log.begin()
  takes(10)
  assert log.train(6, WINDOW, 16)["goodput"] == pytest.approx(16 / 50)
  assert "mfu" not in journal.read(tmp_path)[-1]  # of no known peak
  log.close()


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(processes, "is_first", lambda: False)
  log = journal.Journal(tmp_path, "fast", 0, 10)
  log.begin()
  assert log.train(2, WINDOW, 8)["loss"] == 3.0
  log.write(2, "validation", {"R@1": 0.5})
  log.say("anything")
  log.flush()
  with pytest.raises(errors.NonFinite):  # all of them stop
    log.train(4, [WINDOW[0] | {"loss": np.nan}], 8)
  log.close()
  assert list(tmp_path.iterdir()) == []
  assert capsys.readouterr() == ("", "")


def test_numbers_keep_nine_digits(log, tmp_path):
  log.write(1, "validation", {"R@1": 1 / 3, "small": np.float32(1.2345678e-9)})
  (line,) = read(tmp_path)
  assert line["R@1"] == 0.333333333
  assert line["small"] == float(f"{np.float32(1.2345678e-9):.9g}")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  ("key", "name"), [("loss", "the loss"), ("grad_norm", "the gradient's norm")]
)
def test_what_is_not_finite_is_named_and_not_written(
  log, tmp_path, key, name, bad
):
  window = [WINDOW[0], WINDOW[0] | {key: np.float32(bad)}, WINDOW[1]]
  with pytest.raises(errors.NonFinite) as error:
    log.train(7, window, 16)
  said = str(error.value)
  assert said.startswith(f"fast: {name} must stay finite; got {bad} in steps ")
  assert "in steps 5 to 7." in said
  assert "optim.learning_rate" in said
  assert read(tmp_path) == []
  log.check(7, WINDOW)  # and what is finite passes
  log.check(7, [])


def test_what_is_not_the_training_is_said(log, capsys):
  log.write(4, "validation", {"R@1": 0.25})
  assert "fast step 4: validation R@1 0.25" in capsys.readouterr().err
  log.write(4, "train", {"loss": 0.25})
  assert capsys.readouterr().err == ""


def test_results_are_not_mixed_with_progress(capsys):
  console.say("hello")
  seen = capsys.readouterr()
  assert (seen.out, seen.err) == ("", "hello\n")


def test_a_bar_off_a_terminal_speaks_now_and_then(capsys, monkeypatch):
  assert not sys.stderr.isatty()
  now = [0.0]
  monkeypatch.setattr(journal.time, "perf_counter", lambda: now[0])
  with console.Bar("encode", 100, start=20) as bar:
    for at, done in ((5, 30), (12, 40), (15, 50), (16, 100)):
      now[0] = float(at)
      bar.advance(done, {"loss": 0.5})
  said = capsys.readouterr().err.splitlines()
  # 20 of them took 12 s, so 60 take 36; the last is always said.
  assert said == [
    "encode 40/100  loss 0.5  36 s left",
    "encode 100/100  loss 0.5  0 s left",
  ]


def test_a_patient_bar_is_silent_about_what_is_short(capsys, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(journal.time, "perf_counter", lambda: now[0])

  def takes(seconds):
    with console.Bar("rank", 100, patience=5) as bar:
      for done in range(0, 101, 10):
        bar.advance(done)
        now[0] += seconds / 10
    return capsys.readouterr().err.splitlines()

  assert takes(4) == []
  assert takes(40) == [
    *("rank 30/100    28 s left", "rank 60/100    16 s left"),
    *("rank 90/100    4 s left", "rank 100/100    0 s left"),
  ]


def test_a_bar_on_a_terminal_is_a_live_line(monkeypatch):
  ours, its = os.openpty()
  monkeypatch.setenv("TERM", "xterm")
  with open(its, "w") as terminal:
    assert terminal.isatty()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.Bar("distill", 100, start=20) as bar:
      bar.advance(40, {"loss": 0.5})
      bar.say("saved")
      bar._live.refresh()
  said = b""
  with contextlib.suppress(OSError):  # what a terminal says when it is gone
    while part := os.read(ours, 1 << 16):
      said += part
  os.close(ours)
  said = said.decode()
  assert "distill" in said and "40/100" in said and "loss 0.5" in said
  assert "saved\r\n" in said  # a line that stays
  assert said.rstrip().endswith("\x1b[2K")  # and nothing is left of the bar
