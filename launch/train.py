"""Trains one stage: fast, slow or distill. A killed run continues.

  python -m launch.train --config=configs/scenes.py:fast --workdir=runs/x
  python -m launch.train --config=configs/scenes.py:slow --workdir=runs/x
  python -m launch.train --config=configs/scenes.py:distill --workdir=runs/x

Slow starts from Fast's vision tower; distill starts from Fast, with Slow as its
teacher. Run them in this order, in one workdir. After slow and distill, the
weights that re-ranking needs are fitted on the validation split (fit.json).

You can set any field of the config: --config.optim.learning_rate=3e-4
--config.train.steps=2000. The config is stored beside the checkpoints, and a
run continues only with the config it began with.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from fs_jax import configdict
from fs_jax.evaluate import validation
from fs_jax.machine import commands, compile_cache, processes
from fs_jax.search import weigh
from fs_jax.train import train
from launch import cli, recipes

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configs/<name>.py:<stage>; --config.<field>=<value> edits it"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of all stages")


def main(_: Sequence[str]) -> None:
  cli.need("config", "workdir")
  processes.share_freed_memory()
  processes.start()
  compile_cache.enable()
  cfg = configdict.parse(_CONFIG.value)
  folder = train.train(cfg, _WORKDIR.value, validation.quick_recall)
  if cfg.stage == "slow" and cfg.init.stage:
    weigh.weigh(_WORKDIR.value, cfg.init.stage, cfg.folder)
  if cfg.stage == "distill":
    weigh.weigh(_WORKDIR.value, cfg.folder, cfg.init.teacher)
  if not processes.is_first():
    return
  print(f"{cfg.folder}: trained {cfg.train.steps} steps, in {folder}")
  following = {"fast": "slow", "slow": "distill"}.get(cfg.stage)
  if following:
    cli.print_next(
      commands.command(
        "train", *recipes.words_for(following), f"--workdir={_WORKDIR.value}"
      )
    )
  else:
    cli.print_next(
      commands.command(
        "encode",
        f"--run={folder}",
        f"--slow={folder.parent / cfg.init.teacher}",
      )
    )


if __name__ == "__main__":
  cli.run(main, __doc__)
