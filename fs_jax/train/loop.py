"""One loop for every stage.

The loop knows nothing of objectives: a Task brings init and loss. Its state on
disk is a checkpoint whose step is also the data state: batch t is a function of
the config and t alone, so a killed run goes on as if nothing had happened.
"""

import collections
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from fs_jax import config, types
from fs_jax.data import tokenizer as tokenizers
from fs_jax.machine import errors, hardware, processes, sharding, trace
from fs_jax.runs import checkpoint, journal, layout, stages
from fs_jax.train import step as steps

Validate = Callable[[types.Params], Mapping[str, float]]
_AHEAD = 2  # batches on their way to the device while one is computed


def fit(
  cfg: config.Config,
  workdir: epath.PathLike,
  tokenizer: tokenizers.Tokenizer,
  batches: Callable[[int, tuple[slice, ...]], Iterator[Any]],
  *,
  frozen: types.Params | None = None,
  start_from: types.Params | None = None,
  validate: Validate | None = None,
  devices: list | None = None,
) -> types.TrainState:
  """Trains a stage to its last step, from wherever it stands.

  Args:
    cfg: of the stage.
    workdir: the stage's folder is workdir/<stage>.
    tokenizer: of the captions.
    batches: (first step, this process's rows) -> endless numpy batches.
    frozen: parameters that the loss reads and nobody changes.
    start_from: parameters that replace the first ones where names agree.
    validate: quick recall on a fixed sample, every `train.eval_every` steps.
    devices: all, unless given.

  Raises:
    ValueError: a config that does not fit the mesh or an earlier run.
    OSError: a checkpoint could not be written; the last one is whole.
    report.NonFinite: the loss diverged.
    processes.Preempted: the machine is wanted elsewhere; all is saved.
  """
  where = layout.stage(workdir, cfg.folder)
  made = steps.program(
    cfg,
    tokenizer.vocab_size,
    sharding.mesh(cfg.mesh, devices),
    frozen or {},
  )
  stages.begin(where, cfg, tokenizer)
  began = time.perf_counter()
  with checkpoint.Checkpoints(where / layout.CHECKPOINTS, cfg.train) as saved:
    if (saved.latest() or 0) < cfg.train.steps:
      state = _train(
        cfg, where, made, saved, batches, frozen or {}, start_from, validate
      )
      saved.wait()
    else:
      state = _first_state(cfg, made, saved, None)
  if not stages.is_finished(where):
    seconds = round(time.perf_counter() - began, 1)
    stages.finish(where, {"step": int(state.step), "seconds": seconds})
  return state


def _train(
  cfg: config.Config,
  where: epath.Path,
  made: steps.Program,
  saved: checkpoint.Checkpoints,
  batches: Callable[[int, tuple[slice, ...]], Iterator[Any]],
  frozen: types.Params,
  start_from: types.Params | None,
  validate: Validate | None,
) -> types.TrainState:
  """What is around the loop: who listens, who reports, what is compiled."""
  start = saved.latest() or 0
  rows = sharding.local_rows(cfg.train.batch_size, made.mesh)
  of_batch = sharding.batch(made.mesh)
  peak = hardware.peak_flops(made.mesh.devices.flat[0].device_kind)
  log = journal.Journal(
    where,
    cfg.folder,
    start,
    cfg.train.steps,
    flops=made.flops,
    peak=peak and peak * made.mesh.size,
  )
  try:
    with (
      processes.Notice() as notice,
      trace.Tracer(where / layout.TRACE, cfg.train.profile) as tracer,
    ):
      stages.describe(where, made.state.params, log.say)
      state = _first_state(cfg, made, saved, start_from)
      step = steps.compile_step(made, sharding.place(frozen, made.frozen))
      ready = _ahead(batches(start, rows), lambda b: sharding.put(b, of_batch))
      return _loop(
        cfg.train, state, step, ready, log, saved, validate, notice, tracer
      )
  finally:
    log.close()


def _loop(
  train: config.Train,
  state: types.TrainState,
  run: Callable[..., tuple[types.TrainState, types.Metrics]],
  batches: Iterator[Any],
  log: journal.Journal,
  saved: checkpoint.Checkpoints,
  validate: Validate | None,
  notice: processes.Notice,
  tracer: trace.Tracer,
) -> types.TrainState:
  start = int(state.step)
  window: list[types.Metrics] = saved.window(start) if start else []
  full: tuple[int, list[types.Metrics]] | None = None  # waits to be read
  heard: tuple[int, Mapping[str, float]] = (0, {})  # the last validation

  def flush() -> None:
    nonlocal full
    if full is not None:
      log.train(*full, train.batch_size)
    full = None

  def save() -> None:
    flush()
    log.check(step, window)  # never saves what is no longer finite
    with log.clock.spent(journal.SAVING):
      log.flush()  # no line is missing that a checkpoint has passed
      saved.save(state, heard[1] if heard[0] == step else None, window)

  log.begin()
  for step in range(start + 1, train.steps + 1):
    with log.clock.spent(journal.DATA):
      batch = next(batches)
    state, metrics = tracer.step(step, run, state, batch)
    # Reading metrics waits for their step: a window is read only once the next
    # step is on its way, so that the device never idles.
    flush()
    window.append(metrics)
    if journal.every(train.log_every, step, train.steps):
      full, window = (step, window), []
    if validate and journal.every(train.eval_every, step, train.steps):
      flush()
      with log.clock.spent(journal.VALIDATION):
        heard = step, validate(state.params if state.ema is None else state.ema)
      log.write(step, "validation", heard[1])
    stop = notice.given(step)
    if stop or journal.every(train.save_every, step, train.steps):
      save()
    if stop and step < train.steps:
      saved.wait()
      log.say(f"told to stop: step {step} is saved")
      raise errors.Preempted
  flush()
  return state


def _ahead(batches: Iterator[Any], put: Callable[[Any], Any]) -> Iterator[Any]:
  """Batches on the device, the next ones on their way there."""
  waiting = collections.deque(put(b) for b in itertools.islice(batches, _AHEAD))
  while waiting:
    yield waiting.popleft()
    waiting.extend(put(b) for b in itertools.islice(batches, 1))


def _first_state(
  cfg: config.Config,
  made: steps.Program,
  saved: checkpoint.Checkpoints,
  start_from: types.Params | None,
) -> types.TrainState:
  """The newest checkpoint, or a first state."""
  latest = saved.latest()
  if latest is not None:
    return saved.restore(latest, made.state)
  state = steps.fresh(cfg, made)
  if start_from is None:
    return state
  params = steps.inherit(state.params, start_from)
  if state.ema is None:
    return state._replace(params=params)
  return state._replace(params=params, ema=steps.inherit(state.ema, start_from))
