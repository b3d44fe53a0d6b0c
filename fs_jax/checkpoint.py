"""Checkpoints: the only module that knows orbax.

A checkpoint is parameters and, apart, everything else of the train state, so
that later programs read parameters alone. Saving is asynchronous; a step that
was not written whole does not exist.
"""

import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from fs_jax import types


class Checkpoints:
  """Steps saved under one folder, the newest `keep` of them."""

  def __init__(self, folder: str, keep: int = 1):
    folder = os.fspath(folder)
    if "://" not in folder:
      folder = os.path.abspath(folder)  # orbax refuses relative ones
    self._folder = epath.Path(folder)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, enable_async_checkpointing=True, create=True
    )
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def latest(self) -> int | None:
    """Newest whole step, if there is one."""
    return self._manager.latest_step()

  def save(self, state: types.TrainState) -> None:
    """Starts to write; returns as soon as the arrays are copied.

    Raises:
      OSError: an earlier write failed, for instance on a full disk.
    """
    step = int(state.step)
    if step == self.latest():
      return
    rest = {"step": state.step, "opt_state": state.opt_state}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        rest=ocp.args.StandardSave(rest),
      ),
    )

  def restore(self, step: int, like: types.TrainState) -> types.TrainState:
    """`like`: shapes with the shardings wanted now, whatever they were."""
    rest = {"step": like.step, "opt_state": like.opt_state}
    got = self._read(
      step,
      params=ocp.args.StandardRestore(like.params),
      rest=ocp.args.StandardRestore(rest),
    )
    state = types.TrainState(
      got["rest"]["step"], got["params"], got["rest"]["opt_state"]
    )
    if int(state.step) != step:
      raise ValueError(
        f"{self._folder}/{step}: holds the state of its own step; got "
        f"{int(state.step)}. delete this checkpoint to use an earlier one"
      )
    return state

  def params(self, step: int, like: Any) -> Any:
    """Parameters alone; `like` as in `restore`."""
    return self._read(step, params=ocp.args.StandardRestore(like))["params"]

  def wait(self) -> None:
    """Until everything started is written."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()

  def _read(self, step: int, **items: Any) -> Any:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # of damaged arrays orbax raises just that
      reason = (str(error).strip() or repr(error)).splitlines()[0][:120]
      raise ValueError(
        f"{self._folder}/{step}: must be a whole checkpoint of this model; got "
        f"{reason}. delete that folder to use an earlier step"
      ) from error


def abstract(tree: Any, shardings: Any) -> Any:
  """Shapes of a tree with where each leaf should go."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )
