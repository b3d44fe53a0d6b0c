"""A stage's folder: begins, finishes and loads it.

    workdir/<stage>/  config.json tokenizer.json contract.json
                      checkpoints/<step>/ metrics.jsonl tb/ fit.json DONE

The config beside the checkpoints is the only description of the model: later
programs read it there, and nobody types an architecture twice. contract.json
names the stages that this one started from; fit.json holds the weights of Slow
and a Fast.
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
# Fields that may change when a run continues: where it runs, how often it logs
# and saves, and how weights are fitted once it is trained.
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
  # The contract of all parameters, if `params` holds only some of them.
  whole_contract: dict[str, provenance.Part] | None = None

  @property
  def fast_contract(self) -> provenance.Part:
    return contract.fast(self.cfg, self.tokenizer.hash, self.params["fast"])

  @property
  def slow_contract(self) -> provenance.Part:
    return contract.slow(self.cfg, self.tokenizer.hash, self.params["slow"])

  @property
  def contract(self) -> dict[str, provenance.Part]:
    """The parts for whatever is made with this stage: its model and config."""
    if self.whole_contract is not None:
      return self.whole_contract
    if "slow" in self.params:
      model = {"slow": self.slow_contract}
    else:
      model = {"fast": self.fast_contract}
    (name,) = model
    return {**model, f"{name}_config": contract.recipe(self.cfg)}


def begin(
  folder: epath.Path,
  cfg: config.Config,
  tokenizer: tokenizers.Tokenizer,
  beginning: provenance.Contract | None = None,
) -> None:
  """Writes what a stage starts from, or checks that none of it changed.

  The mesh may change, and so may how often the run logs and saves: neither
  changes what is trained.

  Args:
    folder: the stage's folder.
    cfg: the stage's config.
    tokenizer: the tokenizer of its captions.
    beginning: contracts of the stages that it starts from and learns from;
      None leaves those on disk as they are.

  Raises:
    ValueError: the folder belongs to another config or vocabulary, or started
      from other stages.
  """
  with processes.first_then_others(f"{folder}: begin"):
    _begin(folder, cfg, tokenizer, beginning)


def _begin(
  folder: epath.Path,
  cfg: config.Config,
  tokenizer: tokenizers.Tokenizer,
  beginning: provenance.Contract | None,
) -> None:
  path = folder / layout.CONFIG
  if path.exists():
    old = configdict.from_json(path.read_text())
    differ = configdict.differences(old, cfg)
    changed = [line for line in differ if not line.startswith(FREE)]
    if changed:
      first = "; ".join(changed[:5])
      raise ValueError(
        f"{folder}: a run goes on with the config it began with; got another "
        f"({first}). choose another --workdir, or delete that folder to start "
        "again"
      )
    saved = tokenizers.load(folder / layout.TOKENIZER)
    if saved.hash != tokenizer.hash:
      raise ValueError(
        f"{folder}: a run goes on with the vocabulary it began with; got "
        f"{tokenizer.hash[:12]} for {saved.hash[:12]}. the training captions "
        "or the first stage changed: delete that folder to start again"
      )
    _check_beginning(folder, beginning)
    if differ and processes.is_first():
      files.write_text(path, configdict.to_json(cfg))
    return
  tokenizer.save(folder / layout.TOKENIZER)
  if beginning:
    manifest.write_record(folder / layout.CONTRACT, "stage", beginning, {})
  files.write_text(
    path, configdict.to_json(cfg)
  )  # last: marks the folder as whole


def _check_beginning(
  folder: epath.Path, beginning: provenance.Contract | None
) -> None:
  """Compares what a stage started from; earlier versions did not record it."""
  path = folder / layout.CONTRACT
  if not beginning or not path.exists():
    return
  mend = f"delete the folder to train it again: rm -r {folder}"
  provenance.check_all(
    beginning,
    manifest.read_record(path, "stage", mend=mend)["contract"],
    ours_name="the workdir now",
    theirs_name=f"what {folder} began from",
    mend=mend,
  )


def finish(folder: epath.Path, values: dict[str, Any]) -> None:
  """Marks a stage as done and stores `values` in the mark."""
  if processes.is_first():
    files.write_json(folder / layout.DONE, values)


def describe(
  folder: epath.Path, params: types.Params, say: Callable[[str], None]
) -> None:
  """Writes every parameter's shape and place to parameters.txt.

  Args:
    folder: the stage's folder.
    params: the parameters' shapes with their shardings.
    say: called with a line that counts the parameters.
  """
  if not processes.is_first():
    return
  table = parameter_overview.get_parameter_overview(
    params, include_stats="sharding"
  )
  files.write_text(folder / layout.PARAMETERS, table + "\n")
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  say(f"{count:,} parameters, laid out as in {folder / layout.PARAMETERS}")


def is_finished(folder: epath.Path) -> bool:
  """Whether a stage was trained to its end."""
  return (folder / layout.DONE).exists()


def read_config(folder: epath.PathLike) -> config.Config:
  """Reads the config of a stage.

  Raises:
    ValueError: no such stage.
  """
  folder = epath.Path(folder)
  if not (folder / layout.CONFIG).exists():
    raise ValueError(
      f"{folder}: must be the folder of a stage, with {layout.CONFIG}; got "
      f"none. train it: {commands.program('train')} "
      "--config=configs/<name>.py:<stage> --workdir=<folder above>"
    )
  return configdict.from_json((folder / layout.CONFIG).read_text())


def load(folder: epath.PathLike) -> Run:
  """Loads a stage's parameters onto this process's first device.

  They are those of the newest step, or with `train.keep_best` of the best step
  on validation, and their running mean if the stage keeps one.

  Raises:
    ValueError: no such stage, nothing saved yet, or a damaged checkpoint.
  """
  folder = epath.Path(folder)
  cfg = read_config(folder)
  tokenizer = tokenizers.load(folder / layout.TOKENIZER)
  saved = checkpoint.Checkpoints(
    folder / layout.CHECKPOINTS, cfg.train, alone=True
  )
  part = _read_part(folder)
  step = saved.best() if part is None else saved.latest()
  if step is None:
    raise ValueError(
      f"{folder}: must hold a checkpoint; got none yet. let its training reach "
      "the first save"
    )
  shapes = build.shapes(cfg, tokenizer.vocab_size)
  if part is not None:
    shapes = trees.select(shapes, set(part["names"]).__contains__)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shardings = jax.tree.map(lambda _: here, shapes)
  item = "ema" if cfg.optim.ema and part is None else "params"
  params = saved.params(step, checkpoint.abstract(shapes, shardings), item)
  saved.close()
  whole_contract = None if part is None else part["contract"]
  return Run(folder, cfg, tokenizer, params, step, whole_contract)


def save_part(
  folder: epath.Path, run: Run, keep: Callable[[str], bool]
) -> None:
  """Writes a stage with only some of its parameters, and without history.

  It loads like any other stage. Its contract is that of all parameters, so that
  it fits whatever the whole stage made.

  Args:
    folder: a folder that does not exist yet.
    run: the whole stage.
    keep: whether to keep the parameter of a name.
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


def _read_part(folder: epath.Path) -> dict[str, Any] | None:
  path = folder / layout.PART
  if not path.exists():
    return None
  mend = "copy the whole folder again from where it was made"
  return manifest.read_record(path, _PART_KIND, mend=mend)
