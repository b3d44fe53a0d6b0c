"""One train step and one loop, for every stage.

The loop knows nothing of objectives: a Task brings init and loss. Its state on
disk is a checkpoint whose step is also the data state: batch t is a function of
the config and t alone, so a killed run goes on as if nothing had happened.
"""

import collections
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax.sharding import Mesh

from fs_jax import config, trees, types
from fs_jax.data import tokenizer as tokenizers
from fs_jax.machine import errors, hardware, processes, sharding, trace
from fs_jax.models import flops
from fs_jax.runs import checkpoint, journal, stages
from fs_jax.train import gradients, optim, tasks

Step = Callable[..., tuple[types.TrainState, types.Metrics]]
Validate = Callable[[types.Params], Mapping[str, float]]
_AHEAD = 2  # batches on their way to the device while one is computed


class Program(NamedTuple):
  """A train step and what it is called with, before anything has run.

  `state`, `frozen` and `batch` hold shapes and shardings: those of the arrays
  of a run.
  """

  on: Mesh
  task: types.Task
  optimizer: optax.GradientTransformation
  step: Any  # jitted: (state, frozen, batch) -> (state, metrics)
  state: types.TrainState
  frozen: types.Params
  batch: types.Batch | types.DistillBatch
  flops: float  # of a step of the global batch, as MFU counts


def make_train_step(
  cfg: config.Config, task: types.Task, optimizer: optax.GradientTransformation
) -> Step:
  """step(state, frozen, batch) -> (state, metrics), jitted by `program`.

  Randomness is keyed by (seed, step); draws have the global batch's shape, so
  a row's draw is the same on any mesh.
  """
  gradient = gradients.of(_holding(cfg, task), cfg.train.accumulate)
  rate = optim.schedule(cfg.optim, cfg.train.steps)

  def step(state: types.TrainState, frozen: types.Params, batch: Any):
    key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)
    (loss, metrics), grads = gradient(state.params, frozen, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
      weight = 1 - optim.ema_decay(cfg.optim, state.step)
      ema = optax.incremental_update(params, ema, weight)
    metrics |= {"loss": loss, "learning_rate": rate(state.step)}
    metrics |= optim.norms(grads)
    return types.TrainState(state.step + 1, params, opt_state, ema), metrics

  return step


def program(
  cfg: config.Config,
  vocabulary: int,
  on: Mesh,
  frozen: types.Params | None = None,
) -> Program:
  """The step that `fit` runs, and the shapes and places of its arguments.

  Args:
    cfg: of the stage.
    vocabulary: tokens of the tokenizer.
    on: the mesh, of devices that may be described only.
    frozen: the parameters that the loss reads; if not given, what the config
      says they are.

  Raises:
    ValueError: a config that does not fit the mesh or the model.
  """
  _check_batches(cfg, on)
  task = tasks.make(cfg, vocabulary, on)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  optimizer = optim.optimizer(cfg.optim, cfg.train.steps, shapes)
  of_params = sharding.of_params(cfg.mesh.rules, shapes, on)
  of_key = functools.partial(_fresh, cfg, task, optimizer)
  state = jax.eval_shape(of_key, jax.random.key(0))
  of_opt = sharding.of_state(state.opt_state, shapes, of_params, on)
  everywhere = sharding.replicated(on)
  of_ema = None if state.ema is None else of_params
  placed = types.TrainState(everywhere, of_params, of_opt, of_ema)  # type: ignore[arg-type]
  frozen = tasks.frozen_shapes(cfg, vocabulary) if frozen is None else frozen
  of_frozen = sharding.of_frozen(cfg.mesh.rules, frozen, on)
  batch = tasks.batch_shapes(cfg)
  of_batch = jax.tree.map(lambda _: sharding.batch(on), batch)
  step = jax.jit(
    sharding.known(on, make_train_step(cfg, task, optimizer)),
    in_shardings=(placed, of_frozen, of_batch),
    out_shardings=(placed, everywhere),
    donate_argnums=0,
  )
  return Program(
    on,
    task,
    optimizer,
    step,
    checkpoint.abstract(state, placed),
    checkpoint.abstract(frozen, of_frozen),
    checkpoint.abstract(batch, of_batch),
    flops.train_step(cfg, vocabulary).model,
  )


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
  where = stages.folder(workdir, cfg.folder)
  made = program(
    cfg,
    tokenizer.vocab_size,
    sharding.mesh(cfg.mesh, devices),
    frozen or {},
  )
  stages.begin(where, cfg, tokenizer)
  began = time.perf_counter()
  with checkpoint.Checkpoints(where / "checkpoints", cfg.train) as saved:
    if (saved.latest() or 0) < cfg.train.steps:
      state = _train(
        cfg, where, made, saved, batches, frozen or {}, start_from, validate
      )
      saved.wait()
    else:
      state = _first_state(cfg, made, saved, None)
  if not stages.finished(where):
    seconds = round(time.perf_counter() - began, 1)
    stages.finish(where, {"step": int(state.step), "seconds": seconds})
  return state


def _train(
  cfg: config.Config,
  where: epath.Path,
  made: Program,
  saved: checkpoint.Checkpoints,
  batches: Callable[[int, tuple[slice, ...]], Iterator[Any]],
  frozen: types.Params,
  start_from: types.Params | None,
  validate: Validate | None,
) -> types.TrainState:
  """What is around the loop: who listens, who reports, what is compiled."""
  start = saved.latest() or 0
  rows = sharding.local_rows(cfg.train.batch_size, made.on)
  of_batch = sharding.batch(made.on)
  peak = hardware.peak_flops(made.on.devices.flat[0].device_kind)
  log = journal.Report(
    where,
    cfg.folder,
    start,
    cfg.train.steps,
    flops=made.flops,
    peak=peak and peak * made.on.size,
  )
  try:
    with (
      processes.Notice() as notice,
      trace.Tracer(where / "profile", cfg.train.profile) as tracer,
    ):
      stages.describe(where, made.state.params, log.say)
      state = _first_state(cfg, made, saved, start_from)
      step = _compiled(made, sharding.place(frozen, made.frozen))
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
  log: journal.Report,
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
      log.keep()  # no line is missing that a checkpoint has passed
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


def _compiled(made: Program, frozen: types.Params) -> Step:
  """The step, compiled beforehand: the first one is then like any other."""
  step = made.step.lower(made.state, made.frozen, made.batch).compile()
  return lambda state, batch: step(state, frozen, batch)


def _holding(cfg: config.Config, task: types.Task) -> types.Task:
  """The task whose frozen parameters have no gradient: none is computed."""
  if not cfg.optim.freeze:
    return task

  def held(trained: types.Params) -> types.Params:
    hold = optim.frozen(cfg.optim, trained)
    stop = jax.lax.stop_gradient
    return jax.tree.map(lambda x, h: stop(x) if h else x, trained, hold)

  return task._replace(
    rows=lambda trained, *rest: task.rows(held(trained), *rest),
    loss=lambda trained, *rest: task.loss(held(trained), *rest),
  )


def _check_batches(cfg: config.Config, on: Mesh) -> None:
  parts = cfg.train.accumulate
  sharding.check_batch(cfg.train.batch_size, on, parts=parts)
  if cfg.stage == "distill":
    judged = cfg.distill.clusters * cfg.distill.cluster_size
    field = "distill.clusters * cluster_size"
    sharding.check_batch(judged, on, field)
    if cfg.distill.clusters % parts:
      raise ValueError(
        f"distill.clusters: must be divisible by train.accumulate={parts}; got "
        f"{cfg.distill.clusters}. change either"
      )


def _fresh(
  cfg: config.Config,
  task: types.Task,
  optimizer: optax.GradientTransformation,
  key: jax.Array,
) -> types.TrainState:
  params = task.init(key)
  step = jnp.zeros((), jnp.int32)
  # Two arrays even where equal: both are donated.
  ema = jax.tree.map(jnp.copy, params) if cfg.optim.ema else None
  return types.TrainState(step, params, optimizer.init(params), ema)


def fresh(cfg: config.Config, made: Program) -> types.TrainState:
  """A state before its first step, made where it will live."""
  of_key = functools.partial(_fresh, cfg, made.task, made.optimizer)
  placed = jax.tree.map(lambda x: x.sharding, made.state)
  return jax.jit(of_key, out_shardings=placed)(jax.random.key(cfg.seed))


def _first_state(
  cfg: config.Config,
  made: Program,
  saved: checkpoint.Checkpoints,
  start_from: types.Params | None,
) -> types.TrainState:
  """The newest checkpoint, or a first state."""
  latest = saved.latest()
  if latest is not None:
    return saved.restore(latest, made.state)
  state = fresh(cfg, made)
  if start_from is None:
    return state
  params = inherit(state.params, start_from)
  if state.ema is None:
    return state._replace(params=params)
  return state._replace(params=params, ema=inherit(state.ema, start_from))


def inherit(params: types.Params, donor: types.Params) -> types.Params:
  """`params` with the donor's values where names agree.

  Raises:
    ValueError: the donor has a name that is not there, or another shape.
  """
  own = dict(zip(trees.names(params), jax.tree.leaves(params), strict=True))
  given = dict(zip(trees.names(donor), jax.tree.leaves(donor), strict=True))
  for name, value in given.items():
    if name not in own or own[name].shape != value.shape:
      shape = own[name].shape if name in own else "no such parameter"
      raise ValueError(
        f"init.prefixes: {name!r} must be a parameter of shape {value.shape}; "
        f"got {shape}. give both models the same sizes"
      )
  return trees.map_named(
    lambda name, old: (
      sharding.spread(given[name], old.sharding) if name in given else old
    ),
    params,
  )
