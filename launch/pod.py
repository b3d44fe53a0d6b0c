"""Starts a training on a TPU pod or a cluster, with an existing engine.

  python -m launch.pod --on=tpu-vm --config=configs/cc12m.py:fast \\
      --workdir=gs://bucket/runs/x --zone=us-west4-a --dry-run
  python -m launch.pod --on=gke --config=configs/cc12m.py:fast \\
      --workdir=gs://bucket/runs/x --image=europe-docker.pkg.dev/p/r/fs_jax
  python -m launch.pod --on=slurm --config=configs/cc12m.py:fast \\
      --workdir=/shared/runs/x --topology=h100:4x8 --flags="--time=24:00:00"

--dry-run prints the input of gcloud (a shell script), kubectl (a JobSet) or
sbatch (a script), and starts nothing. Every process of every host runs
launch.train with this --config, its edits and --workdir. The config names the
machine, mesh.topology ("v5e:16x16") and mesh.slices, unless --topology and
--slices do. launch/README.md is the guide.
"""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from fs_jax import config, configdict
from fs_jax.machine.pods import gke, job, slurm, tpu_vm
from launch import cli, recipes


class Engine(NamedTuple):
  """A program that starts jobs and restarts them."""

  render: Callable[[job.Job], str]  # the script or manifest
  tool: str  # must be on PATH
  argv: Callable[[job.Job, str], list[str]]  # the command that submits it
  stdin: bool  # whether the command reads the text from standard input
  commands: tuple[
    str, ...
  ]  # to print afterwards; {0} is the name, {1} the zone


ENGINES = {
  "tpu-vm": Engine(
    tpu_vm.script,
    "gcloud",
    lambda job, text: ["bash", "-c", text],
    stdin=False,
    commands=(
      "gcloud compute tpus queued-resources ssh {0} --zone={1} "
      "--command='journalctl --unit={0} --follow'",
      "gcloud compute tpus queued-resources delete {0} --zone={1} --force",
    ),
  ),
  "gke": Engine(
    gke.manifest,
    "kubectl",
    lambda job, text: ["kubectl", "apply", "--filename=-", *job.flags],
    stdin=True,
    commands=(
      "kubectl logs --follow job/{0}-slice-0",
      "kubectl delete jobset {0}",
    ),
  ),
  "slurm": Engine(
    slurm.script,
    "sbatch",
    lambda job, text: ["sbatch"],
    stdin=True,
    commands=("tail --follow {0}-<number>.out", "scancel <number>"),
  ),
}

_ON = flags.DEFINE_enum("on", None, list(ENGINES), "engine that starts the job")
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configs/<name>.py:<stage>; --config.<field>=<value> edits it"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of all stages")
_DRY = flags.DEFINE_bool("dry-run", False, "print everything, start nothing")
_NAME = flags.DEFINE_string(
  "name", "", "name of the job (default: <config>-<stage>)"
)
_TOPOLOGY = flags.DEFINE_string(
  "topology",
  "",
  "machine to use instead of the config's; h100:4x8: 4 nodes of 8 GPUs",
)
_SLICES = flags.DEFINE_integer(
  "slices", 0, "number of slices; 0: the config's, or 1 with --topology"
)
_RESTARTS = flags.DEFINE_integer("restarts", 10, "most restarts after crashes")
_IMAGE = flags.DEFINE_string("image", "", "gke: container with this repository")
_ACCOUNT = flags.DEFINE_string(
  "service-account", "", "gke: Kubernetes service account that may use gs://"
)
_ZONE = flags.DEFINE_string("zone", "", "tpu-vm: zone that has such TPUs")
_SPOT = flags.DEFINE_bool(
  "spot", False, "tpu-vm, gke: use machines that may be reclaimed"
)
_FLAGS = flags.DEFINE_string(
  "flags",
  "",
  "more flags for the engine's own command: queued-resources create, kubectl "
  "apply or sbatch",
)


def main(_: Sequence[str]) -> None:
  cli.need("on", "config", "workdir")
  engine = ENGINES[str(_ON.value)]
  job = _job(configdict.parse(_CONFIG.value))
  text = engine.render(job)
  if _DRY.value:
    print(text, end="")
    return
  if shutil.which(engine.tool) is None:
    raise ValueError(
      f"--on={_ON.value}: needs {engine.tool} on PATH; got none. install it, "
      "or take --dry-run's output to a machine that has it"
    )
  argv = engine.argv(job, text)
  print(f"{job.name}: {job.slices} x {job.topology}, with {engine.tool}")
  sys.stdout.flush()
  done = subprocess.run(
    argv, input=text if engine.stdin else None, text=True, check=False
  )
  if done.returncode:
    raise ValueError(
      f"{engine.tool}: must accept the job; got exit code {done.returncode}. "
      "see its message above, and its input with --dry-run"
    )
  cli.print_next(*(x.format(job.name, job.zone) for x in engine.commands))


def _job(cfg: config.Config) -> job.Job:
  path, _, stage = recipes.words()[0].partition(":")
  name = f"{pathlib.Path(path).stem}-{stage or cfg.folder}".lower()
  topology = _TOPOLOGY.value or cfg.mesh.topology
  slices = _SLICES.value or (1 if _TOPOLOGY.value else cfg.mesh.slices)
  words = recipes.words()
  if _TOPOLOGY.value or _SLICES.value:
    # The training must name the same machine; under SLURM, "this machine".
    trained_on = "" if _ON.value == "slurm" else topology
    words += [
      f"--config.mesh.topology={trained_on}",
      f"--config.mesh.slices={slices}",
    ]
  workdir = str(_WORKDIR.value)
  return job.Job(
    name=_NAME.value or re.sub("[^a-z0-9]+", "-", name),
    command=("python", "-m", "launch.train", *words, f"--workdir={workdir}"),
    workdir=workdir,
    topology=topology,
    slices=slices,
    restarts=_RESTARTS.value,
    image=_IMAGE.value,
    account=_ACCOUNT.value,
    zone=_ZONE.value,
    spot=_SPOT.value,
    flags=tuple(shlex.split(_FLAGS.value)),
  )


if __name__ == "__main__":
  cli.run(main, __doc__)
