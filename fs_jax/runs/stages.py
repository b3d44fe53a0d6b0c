"""A stage's folder: what it was made of, and what it became.

    workdir/<stage>/  config.json tokenizer.json contract.json
                      checkpoints/<step>/ metrics.jsonl tb/ fit.json DONE

The config beside the checkpoints is the only description of the model: later
programs read it there, and nobody types an architecture twice. contract.json
says of which other stages it began, fit.json how Slow and a Fast weigh.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from clu import parameter_overview
from etils import epath

from fs_jax import config, configdict, trees, types
from fs_jax.data import tokenizer as tokenizers
from fs_jax.machine import commands, files, manifest, processes, provenance
from fs_jax.models import build
from fs_jax.runs import checkpoint, contract, layout

_PART_KIND = "part of a stage"
# What may change while a run goes on: where it runs, how often it speaks, and
# what is fitted once it is trained.
FREE = (
  *("mesh.", "data.threads", "data.cache", "weights."),
  *("train.log_every", "train.save_every", "train.profile", "train.keep"),
)


class Run(NamedTuple):
  """A trained stage."""

  folder: epath.Path
  cfg: config.Config
  tokenizer: tokenizers.Tokenizer
  params: types.Params  # {"fast": ...} or {"slow": ...}
  step: int
  # Where only a part of the parameters is there: the contract of all of them.
  whole: dict[str, provenance.Part] | None = None

  @property
  def fast_contract(self) -> provenance.Part:
    return contract.fast(self.cfg, self.tokenizer.hash, self.params["fast"])

  @property
  def slow_contract(self) -> provenance.Part:
    return contract.slow(self.cfg, self.tokenizer.hash, self.params["slow"])

  @property
  def contract(self) -> dict[str, provenance.Part]:
    """Parts of whatever is made with this stage: its model, its config."""
    if self.whole is not None:
      return self.whole
    if "slow" in self.params:
      model = {"slow": self.slow_contract}
    else:
      model = {"fast": self.fast_contract}
    (name,) = model
    return {**model, f"{name}_config": contract.recipe(self.cfg)}


def begin(
  where: epath.Path,
  cfg: config.Config,
  tokenizer: tokenizers.Tokenizer,
  beginning: provenance.Contract | None = None,
) -> None:
  """Writes what a stage is made of, or checks that nothing of it changed.

  The mesh may change, and how often is logged and saved: neither changes what
  is trained.

  Args:
    where: folder of the stage.
    cfg: of the stage.
    tokenizer: of its captions.
    beginning: contracts of the stages that it starts from and learns from;
      None leaves them as they are.

  Raises:
    ValueError: the folder belongs to another config, vocabulary or beginning.
  """
  with processes.first_then_others(f"{where}: begin"):
    _begin(where, cfg, tokenizer, beginning)


def _begin(
  where: epath.Path,
  cfg: config.Config,
  tokenizer: tokenizers.Tokenizer,
  beginning: provenance.Contract | None,
) -> None:
  path = where / layout.CONFIG
  if path.exists():
    old = configdict.from_json(path.read_text())
    differ = configdict.differences(old, cfg)
    changed = [line for line in differ if not line.startswith(FREE)]
    if changed:
      shown = "; ".join(changed[:5])
      raise ValueError(
        f"{where}: a run goes on with the config it began with; got another "
        f"({shown}). choose another --workdir, or delete that folder to start "
        "again"
      )
    kept = tokenizers.load(where / layout.TOKENIZER)
    if kept.hash != tokenizer.hash:
      raise ValueError(
        f"{where}: a run goes on with the vocabulary it began with; got "
        f"{tokenizer.hash[:12]} for {kept.hash[:12]}. the training captions or "
        "the first stage changed: delete that folder to start again"
      )
    _check_beginning(where, beginning)
    if differ and processes.is_first():
      files.write_text(path, configdict.to_json(cfg))
    return
  tokenizer.save(where / layout.TOKENIZER)
  if beginning:
    manifest.write_record(where / layout.CONTRACT, "stage", beginning, {})
  files.write_text(path, configdict.to_json(cfg))  # last: its folder is whole


def _check_beginning(
  where: epath.Path, beginning: provenance.Contract | None
) -> None:
  """Of a stage that an earlier version began, nobody knows its beginning."""
  path = where / layout.CONTRACT
  if not beginning or not path.exists():
    return
  mend = f"delete the folder to train it again: rm -r {where}"
  provenance.check_all(
    beginning,
    manifest.read_record(path, "stage", mend=mend)["contract"],
    ours_name="the workdir now",
    theirs_name=f"what {where} began from",
    mend=mend,
  )


def finish(where: epath.Path, values: dict[str, Any]) -> None:
  """Marks a stage as done; `values` are kept for those who ask."""
  if processes.is_first():
    files.write_json(where / layout.DONE, values)


def describe(
  where: epath.Path, params: types.Params, say: Callable[[str], None]
) -> None:
  """Writes every parameter's shape and place to parameters.txt.

  Args:
    where: folder of the stage.
    params: shapes with their shardings.
    say: told how many there are.
  """
  if not processes.is_first():
    return
  table = parameter_overview.get_parameter_overview(
    params, include_stats="sharding"
  )
  files.write_text(where / layout.PARAMETERS, table + "\n")
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  say(f"{count:,} parameters, laid out as in {where / layout.PARAMETERS}")


def finished(where: epath.Path) -> bool:
  return (where / layout.DONE).exists()


def read_config(where: epath.PathLike) -> config.Config:
  """The config of a stage.

  Raises:
    ValueError: no such stage.
  """
  where = epath.Path(where)
  if not (where / layout.CONFIG).exists():
    raise ValueError(
      f"{where}: must be the folder of a stage, with {layout.CONFIG}; got "
      f"none. train it: {commands.program('train')} "
      "--config=configs/<name>.py:<stage> --workdir=<folder above>"
    )
  return configdict.from_json((where / layout.CONFIG).read_text())


def load(where: epath.PathLike) -> Run:
  """The parameters of a stage, on this process's first device.

  Those of the newest step, or with `train.keep_best` of the best one on
  validation; their running mean where the stage keeps one.

  Raises:
    ValueError: no such stage, nothing saved yet, or a damaged checkpoint.
  """
  where = epath.Path(where)
  cfg = read_config(where)
  tokenizer = tokenizers.load(where / layout.TOKENIZER)
  saved = checkpoint.Checkpoints(
    where / layout.CHECKPOINTS, cfg.train, alone=True
  )
  part = _read_part(where)
  step = saved.best() if part is None else saved.latest()
  if step is None:
    raise ValueError(
      f"{where}: must hold a checkpoint; got none yet. let its training reach "
      "the first save"
    )
  shapes = build.shapes(cfg, tokenizer.vocab_size)
  if part is not None:
    shapes = trees.select(shapes, set(part["names"]).__contains__)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  where_to = jax.tree.map(lambda _: here, shapes)
  item = "ema" if cfg.optim.ema and part is None else "params"
  params = saved.params(step, checkpoint.abstract(shapes, where_to), item)
  saved.close()
  whole = None if part is None else part["contract"]
  return Run(where, cfg, tokenizer, params, step, whole)


def save_part(
  folder: epath.Path, run: Run, keep: Callable[[str], bool]
) -> None:
  """Writes a stage that does less: some of its parameters, and no history.

  It is loaded like any other, and belongs to what the whole stage made: its
  contract is that of all parameters.

  Args:
    folder: that is not there yet.
    run: the stage.
    keep: name of a parameter -> whether it is kept.
  """
  params = trees.select(run.params, keep)
  names = trees.names(params)
  run.tokenizer.save(folder / layout.TOKENIZER)
  with checkpoint.Checkpoints(
    folder / layout.CHECKPOINTS, config.Train(keep=1)
  ) as saved:
    saved.save(types.TrainState(jnp.int32(run.step), params, {}, None))
  manifest.write_record(
    folder / layout.PART, _PART_KIND, run.contract, {"names": names}
  )
  files.write_text(folder / layout.CONFIG, configdict.to_json(run.cfg))
  files.write_json(folder / layout.DONE, {"step": run.step})


def _read_part(where: epath.Path) -> dict[str, Any] | None:
  path = where / layout.PART
  if not path.exists():
    return None
  mend = "copy the whole folder again from where it was made"
  return manifest.read_record(path, _PART_KIND, mend=mend)
