"""SLURM: an sbatch script, which requeues itself."""

from fs_jax.machine import hardware
from fs_jax.machine.pods import job as jobs


def script(job: jobs.Job) -> str:
  """An sbatch script: one process a GPU.

  Raises:
    ValueError: a topology or workdir that SLURM cannot use, or an option that
      it lacks.
  """
  gpus = hardware.parse_gpus(job.topology)
  jobs.require(
    job.workdir.startswith("/") or "://" in job.workdir,
    "workdir: must be an absolute path that all nodes see; got "
    f"{job.workdir!r}. give --workdir=/<shared disk>/<folder>",
  )
  jobs.require(
    job.slices == 1 and not job.spot,
    f"slices, spot: must be 1 and off on slurm; got {job.slices}, {job.spot}. "
    "leave them out: the partition decides what may be preempted",
  )
  kind = f"{gpus.kind}:" if gpus.kind else ""
  options = [
    f"--job-name={job.name}",
    f"--nodes={gpus.nodes}",
    f"--ntasks-per-node={gpus.per_node}",
    f"--gpus-per-node={kind}{gpus.per_node}",
    "--exclusive",
    "--output=%x-%j.out",
    "--open-mode=append",  # a requeued job keeps its number and its file
    "--requeue",
    f"--signal=B:TERM@{jobs.GRACE}",
    *job.flags,
  ]
  return "\n".join(
    [
      "#!/bin/bash",
      *(f"#SBATCH {option}" for option in options),
      f"restarts={job.restarts}",
      f"patience={jobs.GRACE - 20}",
      jobs.bash_array("command", job.command),
      jobs.shell_part("slurm"),
      "",
    ]
  )
