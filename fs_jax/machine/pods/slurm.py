"""SLURM: an sbatch script, which queues itself again."""

from fs_jax.machine import hardware
from fs_jax.machine.pods import job as jobs


def script(job: jobs.Job) -> str:
  """An sbatch script: one process a GPU.

  Raises:
    ValueError: a topology or workdir that will not do, or what SLURM has not.
  """
  at = hardware.gpus(job.topology)
  jobs.require(
    job.workdir.startswith("/") or "://" in job.workdir,
    "workdir: must be an absolute path that all nodes see; got "
    f"{job.workdir!r}. give such a --workdir",
  )
  jobs.require(
    job.slices == 1 and not job.spot,
    f"slices, spot: must be 1 and off on slurm; got {job.slices}, {job.spot}. "
    "leave them out, a partition says what may be taken away",
  )
  options = [
    f"--job-name={job.name}",
    f"--nodes={at.nodes}",
    f"--ntasks-per-node={at.per_node}",
    f"--gpus-per-node={at.kind and at.kind + ':'}{at.per_node}",
    "--exclusive",
    "--output=%x-%j.out",
    "--open-mode=append",  # queued again, a job keeps its number and its file
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
