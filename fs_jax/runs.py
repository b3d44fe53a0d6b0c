"""A stage's folder: what it was made of, and what it became.

    workdir/<stage>/  config.json tokenizer.json checkpoints/<step>/
                      metrics.jsonl tb/ fit.json DONE

The config beside the checkpoints is the only description of the model: later
programs read it there, and nobody types an architecture twice.
"""

import json
from typing import Any, NamedTuple

import jax
from etils import epath

from fs_jax import (
  calibrate,
  checkpoint,
  config,
  configdict,
  contract,
  files,
  sharding,
  tasks,
  types,
)
from fs_jax.data import tokenizer as tokenizers

CONFIG, TOKENIZER, FIT, DONE = (
  "config.json",
  "tokenizer.json",
  "fit.json",
  "DONE",
)


class Run(NamedTuple):
  """A trained stage."""

  folder: epath.Path
  cfg: config.Config
  tokenizer: tokenizers.Tokenizer
  params: types.Params  # {"fast": ...} or {"slow": ...}
  step: int

  @property
  def fast_contract(self) -> contract.Part:
    return contract.fast(self.cfg, self.tokenizer.hash, self.params["fast"])

  def slow_contract(self, precision: str = "float32") -> contract.Part:
    return contract.slow(
      self.cfg, self.tokenizer.hash, self.params["slow"], precision=precision
    )


def folder(workdir: epath.PathLike, stage: str) -> epath.Path:
  return epath.Path(workdir) / stage


def begin(
  where: epath.Path, cfg: config.Config, tokenizer: tokenizers.Tokenizer
) -> None:
  """Writes what a stage is made of, or checks that nothing of it changed.

  Raises:
    ValueError: the folder belongs to another config or vocabulary.
  """
  path = where / CONFIG
  if path.exists():
    old = configdict.from_json(path.read_text())
    changed = configdict.differences(old, cfg)
    if changed:
      shown = "; ".join(changed[:5])
      raise ValueError(
        f"{where}: a run goes on with the config it began with; got another "
        f"({shown}). choose another --workdir, or delete that folder to start "
        "again"
      )
    kept = tokenizers.load(where / TOKENIZER)
    if kept.hash != tokenizer.hash:
      raise ValueError(
        f"{where}: a run goes on with the vocabulary it began with; got "
        f"{tokenizer.hash[:12]} for {kept.hash[:12]}. the training captions or "
        "the first stage changed: delete that folder to start again"
      )
    return
  tokenizer.save(where / TOKENIZER)
  files.write_text(path, configdict.to_json(cfg))  # last: its folder is whole


def finish(where: epath.Path, values: dict[str, Any]) -> None:
  """Marks a stage as done; `values` are kept for those who ask."""
  files.write_json(where / DONE, values)


def finished(where: epath.Path) -> bool:
  return (where / DONE).exists()


def read_config(where: epath.PathLike) -> config.Config:
  """The config of a stage.

  Raises:
    ValueError: no such stage.
  """
  where = epath.Path(where)
  if not (where / CONFIG).exists():
    raise ValueError(
      f"{where}: must be the folder of a stage, with {CONFIG}; got none. train "
      "it: python -m launch.train --config=configs/<name>.py:<stage> "
      "--workdir=<folder above>"
    )
  return configdict.from_json((where / CONFIG).read_text())


def load(where: epath.PathLike) -> Run:
  """The newest parameters of a stage, on this process's first device.

  Raises:
    ValueError: no such stage, nothing saved yet, or a damaged checkpoint.
  """
  where = epath.Path(where)
  cfg = read_config(where)
  tokenizer = tokenizers.load(where / TOKENIZER)
  saved = checkpoint.Checkpoints(where / "checkpoints", keep=cfg.train.keep)
  step = saved.latest()
  if step is None:
    raise ValueError(
      f"{where}: must hold a checkpoint; got none yet. let its training reach "
      "the first save"
    )
  task = tasks.make(cfg, tokenizer.vocab_size)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  where_to = jax.tree.map(lambda _: here, shapes)
  params = saved.params(step, checkpoint.abstract(shapes, where_to))
  saved.close()
  return Run(where, cfg, tokenizer, params, step)


def save_fit(where: epath.Path, fit: calibrate.Fit, parts: Any) -> None:
  """What was fitted on validation, with the contracts it holds for."""
  files.write_json(where / FIT, {"fit": fit.to_dict(), "contract": parts})


def load_fit(where: epath.PathLike, expected: Any = None) -> calibrate.Fit:
  """Reads what `save_fit` wrote.

  Raises:
    ValueError: none there, or one of other parameters than `expected`.
  """
  path = epath.Path(where) / FIT
  mend = (
    f"fit it: python -m launch.evaluate --fit --workdir={path.parent.parent}"
  )
  if not path.exists():
    raise ValueError(f"{path}: must exist; got no such file. {mend}")
  try:
    values = json.loads(path.read_text())
    fit = calibrate.Fit.from_dict(values["fit"])
    parts = dict(values["contract"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: must be what was fitted; got {error!r}. delete it, then {mend}"
    ) from None
  contract.check_all(
    expected,
    parts,
    ours_name="these models",
    theirs_name=str(path),
    mend=mend,
  )
  return fit


def placed(run: Run, on: Any) -> types.Params:
  """Parameters of a run laid out on a mesh, as a frozen argument."""
  where = sharding.of_params(run.cfg.mesh.rules, run.params, on)
  return jax.tree.map(jax.device_put, run.params, where)
