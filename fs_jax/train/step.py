"""One train step for every stage, with its shapes and places.

What compiles it ahead of time, measures it or runs it takes the same `Program`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fs_jax import config, trees, types
from fs_jax.machine import sharding
from fs_jax.models import flops
from fs_jax.runs import checkpoint
from fs_jax.train import gradients, optim, tasks

Step = Callable[..., tuple[types.TrainState, types.Metrics]]


class Program(NamedTuple):
  """A train step and what it is called with, before anything has run.

  `state`, `frozen` and `batch` hold shapes and shardings: those of the arrays
  of a run.
  """

  mesh: Mesh
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
  gradient = gradients.value_and_grad(_holding(cfg, task), cfg.train.accumulate)
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
  mesh: Mesh,
  frozen: types.Params | None = None,
) -> Program:
  """The step that `fit` runs, and the shapes and places of its arguments.

  Args:
    cfg: of the stage.
    vocabulary: tokens of the tokenizer.
    mesh: the mesh, of devices that may be described only.
    frozen: the parameters that the loss reads; if not given, what the config
      says they are.

  Raises:
    ValueError: a config that does not fit the mesh or the model.
  """
  _check_batches(cfg, mesh)
  task = tasks.make(cfg, vocabulary, mesh)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  optimizer = optim.optimizer(cfg.optim, cfg.train.steps, shapes)
  of_params = sharding.of_params(cfg.mesh.rules, shapes, mesh)
  of_key = functools.partial(_fresh, cfg, task, optimizer)
  state = jax.eval_shape(of_key, jax.random.key(0))
  of_opt = sharding.of_state(state.opt_state, shapes, of_params, mesh)
  everywhere = sharding.replicated(mesh)
  of_ema = None if state.ema is None else of_params
  placed = types.TrainState(everywhere, of_params, of_opt, of_ema)  # type: ignore[arg-type]
  frozen = tasks.frozen_shapes(cfg, vocabulary) if frozen is None else frozen
  of_frozen = sharding.of_frozen(cfg.mesh.rules, frozen, mesh)
  batch = tasks.batch_shapes(cfg)
  of_batch = jax.tree.map(lambda _: sharding.batch(mesh), batch)
  step = jax.jit(
    sharding.with_mesh(mesh, make_train_step(cfg, task, optimizer)),
    in_shardings=(placed, of_frozen, of_batch),
    out_shardings=(placed, everywhere),
    donate_argnums=0,
  )
  return Program(
    mesh,
    task,
    optimizer,
    step,
    checkpoint.abstract(state, placed),
    checkpoint.abstract(frozen, of_frozen),
    checkpoint.abstract(batch, of_batch),
    flops.train_step(cfg, vocabulary).model,
  )


def compile_step(made: Program, frozen: types.Params) -> Step:
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
    encode=lambda trained, *rest: task.encode(held(trained), *rest),
    loss=lambda trained, *rest: task.loss(held(trained), *rest),
  )


def _check_batches(cfg: config.Config, mesh: Mesh) -> None:
  parts = cfg.train.accumulate
  sharding.check_batch(cfg.train.batch_size, mesh, parts=parts)
  if cfg.stage == "distill":
    judged = cfg.distill.clusters * cfg.distill.cluster_size
    field = "distill.clusters * cluster_size"
    sharding.check_batch(judged, mesh, field)
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
