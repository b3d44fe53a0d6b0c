"""Cloud TPU VMs: queued resources, and systemd starts again what has ended."""

import shlex

from fs_jax.machine import hardware
from fs_jax.machine.pods import job as jobs


def script(job: jobs.Job) -> str:
  """A shell script: queued resources, the code on every host, a service.

  Raises:
    ValueError: a topology, workdir, config or zone that will not do.
  """
  at = hardware.tpu_slice(job.topology)
  jobs.check_shared(job)
  jobs.require(
    job.zone, "zone: must be one with such TPUs; got ''. give --zone"
  )
  nodes = [f"--node-id={job.name}"]
  if job.slices > 1:
    nodes = [f"--node-count={job.slices}", f"--node-prefix={job.name}"]
  create = [
    f"--accelerator-type={at.accelerator_type}",
    f"--runtime-version={at.tpu.runtime}",
    *nodes,
    *(["--spot"] if job.spot else []),
    *job.flags,
  ]
  worker = [
    f"name={job.name}",
    f"restarts={job.restarts}",
    f"grace={jobs.GRACE}",
    # A TPU VM does not say whether it is one of several.
    f"multihost={int(job.slices * at.hosts > 1)}",
    jobs.bash_array("command", job.command),
    jobs.shell_part("worker"),
  ]
  return "\n".join(
    [
      "#!/usr/bin/env bash",
      f"# {job.slices} x {job.topology} on Cloud TPU VMs: "
      f"{job.slices * at.hosts} hosts. Run it again at any",
      "# time: it makes what is missing and starts what has stopped.",
      f"name={job.name}",
      f"zone={shlex.quote(job.zone)}",
      f"config={shlex.quote(jobs.config_path(job))}",
      jobs.bash_array("create", create),
      "IFS= read -r -d '' worker <<'WORKER' || true",
      *worker,
      "WORKER",
      jobs.shell_part("tpu_vm"),
      "",
    ]
  )
