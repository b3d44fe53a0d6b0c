"""One train step and one loop, for every stage.

The loop knows nothing of objectives: a Task brings init and loss. Its state on
disk is a checkpoint whose step is also the data state: batch t is a function of
the config and t alone, so a killed run goes on as if nothing had happened.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath

from fs_jax import (
  checkpoint,
  config,
  optim,
  paths,
  report,
  runs,
  sharding,
  tasks,
  types,
)
from fs_jax.data import tokenizer as tokenizers

Step = Callable[..., tuple[types.TrainState, types.Metrics]]
Validate = Callable[[types.Params], Mapping[str, float]]


def make_train_step(
  task: types.Task, optimizer: optax.GradientTransformation, seed: int
) -> Step:
  """step(state, frozen, batch) -> (state, metrics), jitted by `fit`.

  Randomness is keyed by (seed, step); draws have the global batch's shape, so
  a row's draw is the same on any mesh.
  """

  def step(state: types.TrainState, frozen: types.Params, batch: Any):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    gradient = jax.value_and_grad(task.loss, has_aux=True)
    (loss, metrics), grads = gradient(state.params, frozen, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"loss": loss, "grad_norm": optim.global_norm(grads)}
    return types.TrainState(state.step + 1, params, opt_state), metrics

  return step


def fit(
  cfg: config.Config,
  workdir: epath.PathLike,
  tokenizer: tokenizers.Tokenizer,
  batches: Callable[[int, slice], Iterator[Any]],
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
    report.NonFinite: the loss diverged.
  """
  where = runs.folder(workdir, cfg.folder)
  on, task, optimizer, placed = prepare(cfg, tokenizer, devices)
  runs.begin(where, cfg, tokenizer)
  saved = checkpoint.Checkpoints(where / "checkpoints", keep=cfg.train.keep)
  state = _first_state(cfg, task, optimizer, placed, saved, start_from)
  start = int(state.step)
  frozen = {} if frozen is None else frozen
  step = jax.jit(
    make_train_step(task, optimizer, cfg.seed),
    in_shardings=(placed, None, sharding.batch(on)),
    out_shardings=(placed, sharding.replicated(on)),
    donate_argnums=0,
  )
  log = report.Report(where, cfg.folder, start, cfg.train.steps)
  began = time.perf_counter()
  try:
    state = _loop(
      cfg.train,
      state,
      lambda s, b: step(s, frozen, sharding.put(b, sharding.batch(on))),
      batches(start, sharding.local_rows(cfg.train.batch_size)),
      log,
      saved,
      validate,
    )
    saved.save(state)
    saved.wait()
  finally:
    log.close()
    saved.close()
  if not runs.finished(where):
    seconds = round(time.perf_counter() - began, 1)
    runs.finish(where, {"step": int(state.step), "seconds": seconds})
  return state


def _loop(
  train: config.Train,
  state: types.TrainState,
  run: Callable[..., tuple[types.TrainState, types.Metrics]],
  batches: Iterator[Any],
  log: report.Report,
  saved: checkpoint.Checkpoints,
  validate: Validate | None,
) -> types.TrainState:
  window: list[types.Metrics] = []
  full: tuple[int, list[types.Metrics]] | None = None  # waits to be read

  def flush() -> None:
    nonlocal full
    if full is not None:
      log.train(*full, train.batch_size)
    full = None

  for step in range(int(state.step) + 1, train.steps + 1):
    state, metrics = run(state, next(batches))
    # Reading metrics waits for their step: a window is read only once the next
    # step is on its way, so that the device never idles.
    flush()
    window.append(metrics)
    if report.every(train.log_every, step, train.steps):
      full, window = (step, window), []
    if validate and report.every(train.eval_every, step, train.steps):
      flush()
      log.write(step, "validation", validate(state.params))
    if report.every(train.save_every, step, train.steps):
      flush()
      log.check(step, window)  # never saves what is no longer finite
      saved.save(state)
  return state


def prepare(
  cfg: config.Config,
  tokenizer: tokenizers.Tokenizer,
  devices: list | None = None,
) -> tuple[Any, types.Task, optax.GradientTransformation, types.TrainState]:
  """Mesh, task, optimiser, and the sharding of every array of the train state.

  Raises:
    ValueError: a config that does not fit the mesh or the model. Nothing is
      written yet: a folder would hold on to the config that was wrong.
  """
  on = sharding.mesh(cfg.mesh, devices)
  sharding.check_batch(cfg.train.batch_size, on)
  if cfg.stage == "distill":
    judged = cfg.distill.clusters * cfg.distill.cluster_size
    sharding.check_batch(judged, on, "distill.clusters * cluster_size")
  task = tasks.make(cfg, tokenizer.vocab_size)
  optimizer, placed = _layout(cfg, task, on)
  return on, task, optimizer, placed


def _layout(cfg: config.Config, task: types.Task, on: Any):
  """Optimiser, and the sharding of every array of the train state."""
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  optimizer = optim.optimizer(cfg.optim, cfg.train.steps, shapes)
  of_params = sharding.of_params(cfg.mesh.rules, shapes, on)
  fresh = functools.partial(_fresh, task, optimizer)
  abstract = jax.eval_shape(fresh, jax.random.key(0))
  of_opt = sharding.of_state(abstract.opt_state, of_params, on)
  everywhere: Any = sharding.replicated(on)  # in the place of an array
  placed = types.TrainState(everywhere, of_params, of_opt)
  return optimizer, placed


def _fresh(
  task: types.Task, optimizer: optax.GradientTransformation, key: jax.Array
) -> types.TrainState:
  params = task.init(key)
  step = jnp.zeros((), jnp.int32)
  return types.TrainState(step, params, optimizer.init(params))


def _first_state(
  cfg: config.Config,
  task: types.Task,
  optimizer: optax.GradientTransformation,
  placed: types.TrainState,
  saved: checkpoint.Checkpoints,
  start_from: types.Params | None,
) -> types.TrainState:
  """The newest checkpoint, or a first state, made where it will live."""
  key = jax.random.key(cfg.seed)
  fresh = functools.partial(_fresh, task, optimizer)
  latest = saved.latest()
  if latest is not None:
    shapes = jax.eval_shape(fresh, key)
    return saved.restore(latest, checkpoint.abstract(shapes, placed))
  state = jax.jit(fresh, out_shardings=placed)(key)
  if start_from is None:
    return state
  return state._replace(params=inherit(state.params, start_from))


def inherit(params: types.Params, donor: types.Params) -> types.Params:
  """`params` with the donor's values where names agree.

  Raises:
    ValueError: the donor has a name that is not there, or another shape.
  """
  own = dict(zip(paths.names(params), jax.tree.leaves(params), strict=True))
  given = dict(zip(paths.names(donor), jax.tree.leaves(donor), strict=True))
  for name, value in given.items():
    if name not in own or own[name].shape != value.shape:
      shape = own[name].shape if name in own else "no such parameter"
      raise ValueError(
        f"init.prefixes: {name!r} must be a parameter of shape {value.shape}; "
        f"got {shape}. give both models the same sizes"
      )
  return paths.map_named(
    lambda name, old: (
      jax.device_put(given[name], old.sharding) if name in given else old
    ),
    params,
  )
