"""Checkpoints: the only module that knows orbax.

A checkpoint stores parameters, their running mean and the rest of the train
state as separate items, so that later programs read parameters alone. Saving is
asynchronous; a step that was not written whole does not exist.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from fs_jax import config, types
from fs_jax.machine import errors
from fs_jax.runs import checksums

_WINDOW, _SUMS = "window", "sums"


class Checkpoints:
  """Steps saved under one folder, as many as `train` wants to keep.

  Args:
    folder: created if missing.
    train: decides which steps to keep; None for reading.
    alone: True if only this process reads, without waiting for the others.
  """

  def __init__(
    self,
    folder: epath.PathLike,
    train: config.Train | None = None,
    alone: bool = False,
  ):
    writes = train is not None and not alone
    train = train or config.Train()
    folder = os.fspath(folder)
    if "://" not in folder:
      folder = os.path.abspath(folder)  # orbax refuses relative ones
    self._folder = epath.Path(folder)
    best = _score if train.keep_best else None
    options = ocp.CheckpointManagerOptions(
      preservation_policy=_policy(train),
      best_fn=best,  # without it metrics are not written
      enable_async_checkpointing=True,
      create=False,
      # A kill leaves half-written steps; only the writer may delete them.
      cleanup_tmp_directories=writes,
      **(_alone() if alone and jax.process_count() > 1 else {}),
    )
    with self._explained():
      if not alone:  # orbax would notice a file in its place only on writing
        self._folder.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(self._folder, options=options)

  def latest(self) -> int | None:
    """The newest whole step, from which training continues, or None."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """The step that later programs read: best on validation, or newest."""
    return self._manager.best_step()

  def save(
    self,
    state: types.TrainState,
    metrics: Mapping[str, float] | None = None,
    window: Sequence[Mapping[str, types.Array | float]] = (),
  ) -> None:
    """Starts to write; returns as soon as the arrays are copied.

    Args:
      state: the state, which holds its step.
      metrics: validation metrics at this step, by which the best is chosen.
      window: metrics of the steps that no line of the journal covers yet.

    Raises:
      OSError: this write or an earlier one failed, as on a full disk.
      RuntimeError: it failed for a reason that may pass, such as a store that
        did not answer.
    """
    step = int(state.step)
    if step == self.latest():
      return
    arrays = {"params": state.params, "rest": _rest(state)}
    if state.ema is not None:
      arrays["ema"] = state.ema
    items: dict[str, Any] = {
      item: ocp.args.StandardSave(tree) for item, tree in arrays.items()
    }
    items[_SUMS] = ocp.args.JsonSave(checksums.compute(arrays))
    if window:
      read = jax.device_get(list(window))  # at once: one wait, not one a number
      values = [{k: float(v) for k, v in one.items()} for one in read]
      items[_WINDOW] = ocp.args.JsonSave(values)
    with self._explained():
      self._manager.save(
        step,
        args=ocp.args.Composite(**items),
        metrics=dict(metrics) if metrics else None,
        force=True,  # even if a policy would wait
      )

  def restore(self, step: int, like: types.TrainState) -> types.TrainState:
    """Restores a step.

    Args:
      step: a step that was saved.
      like: shapes with the shardings wanted now, whatever they were.

    Raises:
      ValueError: a damaged checkpoint, or one that does not fit `like`.
      OSError, RuntimeError: it cannot be read, or not now.
    """
    items = {"params": like.params, "rest": _rest(like)}
    if like.ema is not None:
      items["ema"] = like.ema
    arrays = self._arrays(step, items)
    rest = arrays["rest"]
    state = types.TrainState(
      rest["step"], arrays["params"], rest["opt_state"], arrays.get("ema")
    )
    if int(state.step) != step:
      raise ValueError(
        f"{self._folder}/{step}: must hold the state of its own step; got "
        f"{int(state.step)}. delete this checkpoint to use an earlier one"
      )
    return state

  def window(self, step: int) -> list[dict[str, np.float32]]:
    """The `window` given to `save`: the start of the next line's window."""
    if not (self._folder / str(step) / _WINDOW).exists():
      return []
    values = self._read(step, **{_WINDOW: ocp.args.JsonRestore()})[_WINDOW]
    return [{k: np.float32(v) for k, v in one.items()} for one in values]

  def params(
    self, step: int, like: types.Params, item: str = "params"
  ) -> types.Params:
    """Restores the parameters alone, or the item "ema".

    Args:
      step: a step that was saved.
      like: the parameters' shapes with the shardings wanted now.
      item: "params", or "ema" for their running mean.

    Raises:
      ValueError, OSError, RuntimeError: as `restore`.
    """
    return self._arrays(step, {item: like})[item]

  def wait(self) -> None:
    """Waits until every write that was started is done.

    Raises:
      OSError, RuntimeError: as `save`.
    """
    with self._explained():
      self._manager.wait_until_finished()

  def close(self) -> None:
    with self._explained():
      self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    try:
      self.close()
    except (OSError, RuntimeError):
      if kind is None:
        raise  # otherwise the first error explains more

  def _arrays(self, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
    """Restores items, and compares them with their checksums."""
    wanted = {k: ocp.args.StandardRestore(like) for k, like in items.items()}
    read = self._read(step, **wanted)
    arrays = {item: read[item] for item in items}
    if not (self._folder / str(step) / _SUMS).exists():
      return arrays  # an earlier version wrote no checksums
    sums = self._read(step, **{_SUMS: ocp.args.JsonRestore()})[_SUMS]
    now = checksums.compute(arrays)
    bad = [name for name, value in now.items() if sums.get(name) != value]
    if bad:
      raise ValueError(
        f"{self._folder}/{step}: must hold what was saved; got other numbers "
        f"in {len(bad)} of {len(now)} arrays, first {bad[0]!r}. delete that "
        "folder to use an earlier step"
      )
    return arrays

  def _read(self, step: int, **items: Any) -> Any:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # orbax raises no narrower type for damage
      why = errors.one_line(error)
      if errors.is_permission_error(error):
        raise OSError(
          f"{self._folder}/{step}: must be readable; got {why}. "
          "mend the permissions"
        ) from error
      if errors.is_out_of_memory(error):
        raise ValueError(
          f"{self._folder}/{step}: must fit into memory; got {why}. "
          "the checkpoint is whole: take more devices, or raise mesh.fsdp"
        ) from error
      if errors.is_transient(error):
        raise RuntimeError(
          f"{self._folder}/{step}: its disk and all processes must answer; got "
          f"{why}. start again"
        ) from error
      raise ValueError(
        f"{self._folder}/{step}: must be a whole checkpoint of this model; got "
        f"{why}. delete that folder to use an earlier step"
      ) from error

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Explains failures to write; every layer below raises its own types."""
    try:
      yield
    except Exception as error:
      whole = self._manager.latest_step() if hasattr(self, "_manager") else None
      left = f"step {whole} is whole" if whole is not None else "none is whole"
      failed = f"{self._folder}: a checkpoint must be written; got "
      failed += f"{errors.one_line(error)}. "
      if not errors.is_user_fixable(error):
        raise RuntimeError(f"{failed}start again ({left})") from error
      raise OSError(
        f"{failed}make room or mend the permissions and start again ({left})"
      ) from error


def abstract(tree: Any, shardings: Any) -> Any:
  """Shapes of a tree, each with the sharding that its leaf should get."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


def _alone() -> dict[str, Any]:
  """Options for a manager that waits for no other process."""
  own = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=own,
    active_processes={own},
    barrier_sync_key_prefix=f"process{own}",
  )
  return {"multiprocessing_options": options}


def _policy(
  train: config.Train,
) -> ocp.checkpoint_managers.PreservationPolicy:
  """Keeps the newest steps, every n-th and the best."""
  managers = ocp.checkpoint_managers
  policies: list[ocp.checkpoint_managers.PreservationPolicy] = [
    managers.LatestN(train.keep)
  ]
  if train.keep_every:
    policies.append(managers.EveryNSteps(train.keep_every))
  if train.keep_best:
    policies.append(
      managers.BestN(
        get_metric_fn=_score,
        n=train.keep_best,
        keep_checkpoints_without_metrics=False,
      )
    )
  return managers.AnyPreservationPolicy(policies)


def _score(metrics: Mapping[str, float]) -> float:
  """R@1 + R@5; the second breaks ties of the first."""
  return sum(metrics.values())


def _rest(state: types.TrainState) -> dict[str, Any]:
  return {"step": state.step, "opt_state": state.opt_state}
