"""Compiles a train step for a TPU, without one: does it fit, how fast is it?

  python -m launch.plan --config=configs/coco.py:fast
  python -m launch.plan --config=configs/cc12m.py:fast_l14 --topology=v5p:4x4x4
  python -m launch.plan --all        a table of all configs with mesh.topology

The step is the one that training runs. You can set any field of the config:
--config.train.batch_size=8192; --config.mesh.slices=2 plans for two slices.
If the step does not fit, the planner adds one change after the other, and
compiles again, until it does. Needs libtpu, which `make plan` installs.
"""

import dataclasses
import importlib
import pathlib
import re
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from fs_jax import config, configdict
from fs_jax.train.plan import plan, table
from launch import cli, recipes

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configs/<name>.py:<stage>; --config.<field>=<value> edits it"
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", "", "TPU slice such as v5e:16x16 (default: the config's)"
)
_ALL = flags.DEFINE_bool("all", False, "plan every config that has a topology")
_JOBS = flags.DEFINE_integer(
  "jobs",
  0,
  "with --all: steps to compile at once; 0: as cores and memory allow",
)
_OUT = flags.DEFINE_string(
  "out", "", "JSON file for the plan (default: one in runs/plan)"
)
_CHECK = flags.DEFINE_bool(
  "check_flops", False, "compare our FLOPs with XLA's count, on two layers"
)
_FOLDER = "runs/plan"
_README = "launch/README.md"


def main(_: Sequence[str]) -> None:
  table.stay_on_cpu()
  if _ALL.value:
    jobs = _JOBS.value or table.count_jobs()
    table.plan_all(_recipes(), _FOLDER, _README, jobs)
    return
  cli.need("config")
  cfg = configdict.parse(_CONFIG.value)
  if _TOPOLOGY.value:
    mesh = dataclasses.replace(cfg.mesh, topology=_TOPOLOGY.value)
    cfg = dataclasses.replace(cfg, mesh=mesh)
  if _CHECK.value:
    ours, theirs = plan.count_flops(cfg)
    print(
      f"two layers of each stack, batch 8: {ours:.5g} FLOPs counted here, "
      f"{theirs:.5g} by XLA, {theirs / ours - 1:+.1%}"
    )
    return
  name = " ".join(recipes.words()).removeprefix("--config=")
  table.plan_one(name, cfg, _OUT.value or _FOLDER)


def _recipes() -> dict[str, config.Config]:
  """Every stage of configs/ that names a topology.

  A file lists its stages in get_config's docstring, "stage: fast or slow", and
  its variants with other topologies, if any, in ELSEWHERE.
  """
  cfgs = {}
  for path in sorted(pathlib.Path("configs").glob("[!_]*.py")):
    module = importlib.import_module(f"configs.{path.stem}")
    listed = re.search(r"stage: ([\w, \n]+)", module.get_config.__doc__ or "")
    stages = re.split(r",\s*|\s+or\s+", listed[1].strip()) if listed else []
    for stage in [*stages, *getattr(module, "ELSEWHERE", ())]:
      cfg = configdict.parse(module.get_config(stage))
      if cfg.mesh.topology:
        cfgs[f"configs/{path.stem}.py:{stage}"] = cfg
  return cfgs


if __name__ == "__main__":
  cli.run(main, __doc__)
