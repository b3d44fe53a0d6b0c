"""One train step for every stage, with its shapes and places.

Planning, timing and training take the same `Program`.
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
  step: jax.stages.Wrapped  # jitted: (state, frozen, batch) -> (state, metrics)
  state: types.TrainState
  frozen: types.Params
  batch: types.AnyBatch
  flops: float  # a step's, of the global batch, as MFU counts them


def make_train_step(
  cfg: config.Config, task: types.Task, optimizer: optax.GradientTransformation
) -> Step:
  """step(state, frozen, batch) -> (state, metrics), jitted by `program`.

  Randomness is keyed by (seed, step); draws have the global batch's shape, so
  a row's draw is the same on any mesh.
  """
  task = _stop_frozen(cfg, task)
  gradient = gradients.value_and_grad(task, cfg.train.accumulate)
  rate = optim.schedule(cfg.optim, cfg.train.steps)

  def step(
    state: types.TrainState, frozen: types.Params, batch: types.AnyBatch
  ) -> tuple[types.TrainState, types.Metrics]:
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
    cfg: the stage's config.
    vocabulary: the tokenizer's number of tokens.
    mesh: the mesh; its devices may be descriptions only.
    frozen: the parameters that the loss reads; if not given, the shapes that
      the config implies.

  Raises:
    ValueError: a config that does not fit the mesh or the model.
  """
  _check_batches(cfg, mesh)
  task = tasks.make(cfg, vocabulary, mesh)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  optimizer = optim.optimizer(cfg.optim, cfg.train.steps, shapes)
  init = functools.partial(_init, cfg, task, optimizer)
  state = jax.eval_shape(init, jax.random.key(0))
  state_shardings = _state_shardings(cfg, mesh, shapes, state)
  frozen = tasks.frozen_shapes(cfg, vocabulary) if frozen is None else frozen
  frozen_shardings = sharding.of_frozen(cfg.mesh.rules, frozen, mesh)
  batch = tasks.batch_shapes(cfg)
  batch_shardings = jax.tree.map(lambda _: sharding.batch(mesh), batch)
  step = jax.jit(
    sharding.with_mesh(mesh, make_train_step(cfg, task, optimizer)),
    in_shardings=(state_shardings, frozen_shardings, batch_shardings),
    out_shardings=(state_shardings, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  return Program(
    mesh,
    task,
    optimizer,
    step,
    checkpoint.abstract(state, state_shardings),
    checkpoint.abstract(frozen, frozen_shardings),
    checkpoint.abstract(batch, batch_shardings),
    flops.train_step(cfg, vocabulary).model,
  )


def _state_shardings(
  cfg: config.Config, mesh: Mesh, params: types.Params, state: types.TrainState
) -> types.TrainState:
  """The sharding of each array of `state`, whose parameters are `params`."""
  everywhere: Any = sharding.replicated(mesh)
  placed = sharding.of_params(cfg.mesh.rules, params, mesh)
  optimizer = sharding.of_state(state.opt_state, params, placed, mesh)
  ema = None if state.ema is None else placed
  return types.TrainState(everywhere, placed, optimizer, ema)


def compile_step(program: Program, frozen: types.Params) -> Step:
  """Compiles the step ahead, so that the first one is like any other."""
  shapes = program.state, program.frozen, program.batch
  step = program.step.lower(*shapes).compile()
  return lambda state, batch: step(state, frozen, batch)


def _stop_frozen(cfg: config.Config, task: types.Task) -> types.Task:
  """`task` without gradients of the parameters that `cfg` freezes."""
  if not cfg.optim.freeze:
    return task

  def stop(trained: types.Params) -> types.Params:
    return jax.tree.map(
      lambda x, frozen: jax.lax.stop_gradient(x) if frozen else x,
      trained,
      optim.frozen(cfg.optim, trained),
    )

  return task._replace(
    encode=lambda trained, *rest: task.encode(stop(trained), *rest),
    loss=lambda trained, *rest: task.loss(stop(trained), *rest),
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
        f"{cfg.distill.clusters}. set distill.clusters to a multiple of {parts}"
      )


def _init(
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


def init(cfg: config.Config, program: Program) -> types.TrainState:
  """The state before the first step, made on the devices it will live on."""
  make = functools.partial(_init, cfg, program.task, program.optimizer)
  shardings = jax.tree.map(lambda x: x.sharding, program.state)
  return jax.jit(make, out_shardings=shardings)(jax.random.key(cfg.seed))


def inherit(params: types.Params, donor: types.Params) -> types.Params:
  """`params` with the donor's values where names agree.

  Raises:
    ValueError: the donor has a name that `params` lack, or another shape.
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
