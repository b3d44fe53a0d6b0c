"""Checkpoints: the only module that knows orbax.

A checkpoint is parameters and, apart, their running mean and everything else of
the train state, so that later programs read parameters alone. Saving is
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
    folder: made if it is not there.
    train: which steps to keep; not given by who only reads.
    alone: for this process to read, without those that run beside it.
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
      # What a kill left half written; others may look while it is written.
      cleanup_tmp_directories=writes,
      **(_alone() if alone and jax.process_count() > 1 else {}),
    )
    with self._explained():
      if not alone:  # orbax does not mind a file in its place until it writes
        self._folder.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(self._folder, options=options)

  def latest(self) -> int | None:
    """Newest whole step, if there is one: where training goes on."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """The step that later programs read: best on validation, or the newest."""
    return self._manager.best_step()

  def save(
    self,
    state: types.TrainState,
    metrics: Mapping[str, float] | None = None,
    window: Sequence[Mapping[str, Any]] = (),
  ) -> None:
    """Starts to write; returns as soon as the arrays are copied.

    Args:
      state: the step is its own.
      metrics: of validation at this step, by which the best is chosen.
      window: metrics of the steps that no line of the run has yet.

    Raises:
      OSError: this write or an earlier one failed, as on a full disk.
      RuntimeError: it failed for what may pass, as a store that did not answer.
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
      said = [{k: float(v) for k, v in one.items()} for one in read]
      items[_WINDOW] = ocp.args.JsonSave(said)
    with self._explained():
      self._manager.save(
        step,
        args=ocp.args.Composite(**items),
        metrics=dict(metrics) if metrics else None,
        force=True,  # also where a policy would wait
      )

  def restore(self, step: int, like: types.TrainState) -> types.TrainState:
    """`like`: shapes with the shardings wanted now, whatever they were."""
    items = {"params": like.params, "rest": _rest(like)}
    if like.ema is not None:
      items["ema"] = like.ema
    got = self._arrays(step, items)
    rest = got["rest"]
    state = types.TrainState(
      rest["step"], got["params"], rest["opt_state"], got.get("ema")
    )
    if int(state.step) != step:
      raise ValueError(
        f"{self._folder}/{step}: holds the state of its own step; got "
        f"{int(state.step)}. delete this checkpoint to use an earlier one"
      )
    return state

  def window(self, step: int) -> list[dict[str, np.float32]]:
    """As given to `save`: what a line that this step cut in two begins with."""
    if not (self._folder / str(step) / _WINDOW).exists():
      return []
    said = self._read(step, **{_WINDOW: ocp.args.JsonRestore()})[_WINDOW]
    return [{k: np.float32(v) for k, v in one.items()} for one in said]

  def params(self, step: int, like: Any, item: str = "params") -> Any:
    """Parameters alone, or item "ema"; `like` as in `restore`."""
    return self._arrays(step, {item: like})[item]

  def wait(self) -> None:
    """Until everything started is written.

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
        raise  # or else what came first says more

  def _arrays(self, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
    """Those items, as they were saved to the last bit."""
    wanted = {k: ocp.args.StandardRestore(like) for k, like in items.items()}
    read = self._read(step, **wanted)
    got = {item: read[item] for item in items}
    if not (self._folder / str(step) / _SUMS).exists():
      return got  # of an earlier version
    sums = self._read(step, **{_SUMS: ocp.args.JsonRestore()})[_SUMS]
    now = checksums.compute(got)
    bad = [name for name, value in now.items() if sums.get(name) != value]
    if bad:
      raise ValueError(
        f"{self._folder}/{step}: must hold what was saved; got other numbers "
        f"in {len(bad)} of {len(now)} arrays, first {bad[0]!r}. delete that "
        "folder to use an earlier step"
      )
    return got

  def _read(self, step: int, **items: Any) -> Any:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # of damaged arrays orbax raises just that
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
    """Failures to write, of which every layer below has its own kind."""
    try:
      yield
    except Exception as error:
      whole = self._manager.latest_step() if hasattr(self, "_manager") else None
      kept = f"step {whole} is whole" if whole is not None else "none is whole"
      said = f"{self._folder}: a checkpoint must be written; got "
      said += f"{errors.one_line(error)}. "
      if not errors.is_user_fixable(error):
        raise RuntimeError(f"{said}start again ({kept})") from error
      raise OSError(
        f"{said}make room or mend the permissions and start again ({kept})"
      ) from error


def abstract(tree: Any, shardings: Any) -> Any:
  """Shapes of a tree with where each leaf should go."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


def _alone() -> dict[str, Any]:
  """Options of a manager that waits for no other process."""
  own = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=own,
    active_processes={own},
    barrier_sync_key_prefix=f"process{own}",
  )
  return {"multiprocessing_options": options}


def _policy(train: config.Train) -> Any:
  """Newest, every n-th and best: what any of them wants is kept."""
  of = ocp.checkpoint_managers
  policies = [of.LatestN(train.keep)]
  if train.keep_every:
    policies.append(of.EveryNSteps(train.keep_every))
  if train.keep_best:
    policies.append(
      of.BestN(
        get_metric_fn=_score,
        n=train.keep_best,
        keep_checkpoints_without_metrics=False,
      )
    )
  return of.AnyPreservationPolicy(policies)


def _score(metrics: Mapping[str, float]) -> float:
  """R@1 + R@5: of two equal in the first, the one with better neighbours."""
  return sum(metrics.values())


def _rest(state: types.TrainState) -> dict[str, Any]:
  return {"step": state.step, "opt_state": state.opt_state}
