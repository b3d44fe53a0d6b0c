"""One loop for every stage: data, step, log, validate, save, stop.

The loop knows nothing of objectives: a Task brings init and loss. Its state on
disk is a checkpoint whose step is also the data state: batch t is a function of
the config and t alone, so a killed run goes on as if nothing had happened.
"""

import collections
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
from etils import epath

from fs_jax import config, types
from fs_jax.data import tokenizer as tokenizers
from fs_jax.machine import errors, hardware, processes, sharding, trace
from fs_jax.runs import checkpoint, journal, layout, stages
from fs_jax.train import step as steps

Validate = Callable[[types.Params], Mapping[str, float]]
# (first step, this process's rows) -> endless batches of numpy arrays
Batches = Callable[[int, tuple[slice, ...]], Iterator[types.AnyBatch]]
_AHEAD = 2  # batches on their way to the device while one is computed


def fit(
  cfg: config.Config,
  workdir: epath.PathLike,
  tokenizer: tokenizers.Tokenizer,
  batches: Batches,
  *,
  frozen: types.Params | None = None,
  start_from: types.Params | None = None,
  validate: Validate | None = None,
  devices: list[jax.Device] | None = None,
) -> types.TrainState:
  """Trains a stage to its last step, from wherever it stands.

  Args:
    cfg: the stage's config.
    workdir: the stage's folder is workdir/<stage>.
    tokenizer: the captions' tokenizer.
    batches: (first step, this process's rows) -> endless numpy batches.
    frozen: parameters that the loss reads and nobody changes.
    start_from: parameters that replace the first ones where names agree.
    validate: scores of parameters, asked for every `train.eval_every` steps.
    devices: all, unless given.

  Raises:
    ValueError: a config that does not fit the mesh or an earlier run.
    OSError: a checkpoint could not be written; the last one is whole.
    errors.NonFinite: the loss diverged.
    errors.Preempted: the machine is being reclaimed; all is saved.
  """
  folder = layout.stage(workdir, cfg.folder)
  program = steps.program(
    cfg,
    tokenizer.vocab_size,
    sharding.mesh(cfg.mesh, devices),
    frozen or {},
  )
  stages.begin(folder, cfg, tokenizer)
  began = time.perf_counter()
  with checkpoint.Checkpoints(folder / layout.CHECKPOINTS, cfg.train) as saved:
    if (saved.latest() or 0) < cfg.train.steps:
      state = _train(
        cfg,
        folder,
        program,
        saved,
        batches,
        frozen or {},
        start_from,
        validate,
      )
      saved.wait()
    else:
      state = _first_state(cfg, program, saved, None)
  if not stages.is_finished(folder):
    seconds = round(time.perf_counter() - began, 1)
    stages.finish(folder, {"step": int(state.step), "seconds": seconds})
  return state


def _train(
  cfg: config.Config,
  folder: epath.Path,
  program: steps.Program,
  saved: checkpoint.Checkpoints,
  batches: Batches,
  frozen: types.Params,
  start_from: types.Params | None,
  validate: Validate | None,
) -> types.TrainState:
  """Opens the log, listens for signals, compiles the step; then the loop."""
  start = saved.latest() or 0
  rows = sharding.local_rows(cfg.train.batch_size, program.mesh)
  placement = sharding.batch(program.mesh)
  peak = hardware.peak_flops(program.mesh.devices.flat[0].device_kind)
  log = journal.Journal(
    folder,
    cfg.folder,
    start,
    cfg.train.steps,
    flops=program.flops,
    peak=peak and peak * program.mesh.size,
  )
  try:
    with (
      processes.Notice() as notice,
      trace.Tracer(folder / layout.TRACE, cfg.train.profile) as tracer,
    ):
      stages.describe(folder, program.state.params, log.say)
      state = _first_state(cfg, program, saved, start_from)
      step = steps.compile_step(program, sharding.place(frozen, program.frozen))
      ready = _ahead(
        batches(start, rows), lambda batch: sharding.put(batch, placement)
      )
      session = Session(
        cfg.train, step, ready, log, saved, validate, notice, tracer
      )
      return _loop(session, state)
  finally:
    log.close()


class Session(NamedTuple):
  """What the loop works with, opened and closed around it."""

  train: config.Train
  step: steps.Step  # compiled: (state, batch) -> (state, metrics)
  batches: Iterator[types.AnyBatch]  # on the devices
  log: journal.Journal
  saved: checkpoint.Checkpoints
  validate: Validate | None
  notice: processes.Notice
  tracer: trace.Tracer


class Pending:
  """Metrics on the device that no line of the log has yet.

  Reading metrics waits for their step: a window is read only once the next step
  is on its way, so that the device never idles.

  Args:
    log: where a window's means are written.
    examples: a step's.
    window: metrics of the steps since the log's last line, if resumed.
  """

  def __init__(
    self, log: journal.Journal, examples: int, window: list[types.Metrics]
  ):
    self._log, self._examples = log, examples
    self.window = window
    self._full: tuple[int, list[types.Metrics]] | None = None  # to be read

  def add(self, step: int, metrics: types.Metrics, *, last: bool) -> None:
    """Takes the metrics of a step on its way; `last`: of its window."""
    self.flush()
    self.window.append(metrics)
    if last:
      self._full, self.window = (step, self.window), []

  def flush(self) -> None:
    """Writes the window that waits, if one does."""
    if self._full is not None:
      self._log.train(*self._full, self._examples)
    self._full = None


def _loop(session: Session, state: types.TrainState) -> types.TrainState:
  train, log, saved = session.train, session.log, session.saved
  start = int(state.step)
  window = saved.window(start) if start else []
  pending = Pending(log, train.batch_size, window)
  log.begin()
  for step in range(start + 1, train.steps + 1):
    with log.clock.spent(journal.DATA):
      batch = next(session.batches)
    state, metrics = session.tracer.step(step, session.step, state, batch)
    last = journal.every(train.log_every, step, train.steps)
    pending.add(step, metrics, last=last)
    scores = None
    if session.validate and journal.every(train.eval_every, step, train.steps):
      pending.flush()
      scores = _validate(log, session.validate, step, state)
    stop = session.notice.given(step)
    if stop or journal.every(train.save_every, step, train.steps):
      pending.flush()
      _save(log, saved, step, state, scores, pending.window)
    if stop and step < train.steps:
      saved.wait()
      log.say(f"told to stop: step {step} is saved")
      raise errors.Preempted
  pending.flush()
  return state


def _validate(
  log: journal.Journal, validate: Validate, step: int, state: types.TrainState
) -> Mapping[str, float]:
  """Scores the running mean of the parameters, or these if there is none."""
  with log.clock.spent(journal.VALIDATION):
    scores = validate(state.params if state.ema is None else state.ema)
  log.write(step, "validation", scores)
  return scores


def _save(
  log: journal.Journal,
  saved: checkpoint.Checkpoints,
  step: int,
  state: types.TrainState,
  scores: Mapping[str, float] | None,
  window: Sequence[types.Metrics],
) -> None:
  log.check(step, window)  # never saves what is no longer finite
  with log.clock.spent(journal.SAVING):
    log.flush()  # no line is missing that a checkpoint has passed
    saved.save(state, scores, window)


def _ahead(
  batches: Iterator[types.AnyBatch],
  put: Callable[[types.AnyBatch], types.AnyBatch],
) -> Iterator[types.AnyBatch]:
  """Yields batches on the devices, the next ones on their way there."""
  waiting = collections.deque(put(b) for b in itertools.islice(batches, _AHEAD))
  while waiting:
    yield waiting.popleft()
    waiting.extend(put(b) for b in itertools.islice(batches, 1))


def _first_state(
  cfg: config.Config,
  program: steps.Program,
  saved: checkpoint.Checkpoints,
  start_from: types.Params | None,
) -> types.TrainState:
  """The newest checkpoint, or a first state."""
  latest = saved.latest()
  if latest is not None:
    return saved.restore(latest, program.state)
  state = steps.init(cfg, program)
  if start_from is None:
    return state
  params = steps.inherit(state.params, start_from)
  if state.ema is None:
    return state._replace(params=params)
  return state._replace(params=params, ema=steps.inherit(state.ema, start_from))
