"""Compiles a train step for a TPU that is not there: does it fit, how long.

  python -m launch.plan --config=configs/coco.py:fast
  python -m launch.plan --config=configs/cc12m.py:fast_l14 --topology=v5p:4x4x4
  python -m launch.plan --all        every config with a mesh.topology, a table

The step is the one that training runs. Any field of the config can be set:
--config.train.batch_size=8192; --config.mesh.slices=2 plans for two slices.
Where it does not fit, changes are compiled one on top of the other until it
does. Needs libtpu: `make plan` brings it.
"""

import dataclasses
import importlib
import pathlib
import re

from absl import flags
from ml_collections import config_flags

from fs_jax import config, configdict
from fs_jax.train.plan import plan, table
from launch import cli

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configs/<name>.py:<stage>; --config.<field>=<value> edits it"
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", "", "such as v5e:16x16; if not given, the config's"
)
_ALL = flags.DEFINE_bool("all", False, "plan every config that has a topology")
_JOBS = flags.DEFINE_integer(
  "jobs", 0, "all: compile so many at once; 0: what cores and memory hold"
)
_OUT = flags.DEFINE_string(
  "out", "", "JSON file of the plan; if not given, in runs/plan"
)
_CHECK = flags.DEFINE_bool(
  "check_flops", False, "compare the FLOPs with what XLA counts of two layers"
)
_FOLDER = "runs/plan"
_README = "launch/README.md"


def main(_) -> None:
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
  name = " ".join(cli.config_words()).removeprefix("--config=")
  table.plan_one(name, cfg, _OUT.value or _FOLDER)


def _recipes() -> dict[str, config.Config]:
  """Every stage of configs/ that names a topology, and where else to plan it.

  A file lists its stages in get_config's docstring, "stage: fast or slow", and
  those with another topology, if any, in ELSEWHERE.
  """
  found = {}
  for path in sorted(pathlib.Path("configs").glob("[!_]*.py")):
    module = importlib.import_module(f"configs.{path.stem}")
    listed = re.search(r"stage: ([\w, \n]+)", module.get_config.__doc__ or "")
    stages = re.split(r",\s*|\s+or\s+", listed[1].strip()) if listed else []
    for stage in [*stages, *getattr(module, "ELSEWHERE", ())]:
      cfg = configdict.parse(module.get_config(stage))
      if cfg.mesh.topology:
        found[f"configs/{path.stem}.py:{stage}"] = cfg
  return found


if __name__ == "__main__":
  cli.run(main, __doc__)
