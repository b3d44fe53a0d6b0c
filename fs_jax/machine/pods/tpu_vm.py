"""Cloud TPU VMs: queued resources; systemd restarts what has ended."""

import shlex

from fs_jax.machine import hardware
from fs_jax.machine.pods import job as jobs


def script(job: jobs.Job) -> str:
  """A shell script: queues resources, copies the code, starts a service.

  Raises:
    ValueError: a topology, workdir, config or zone that cannot be used.
  """
  tpu_slice = hardware.parse_slice(job.topology)
  jobs.check_shared(job)
  jobs.require(
    job.zone,
    "zone: must be one with such TPUs; got ''. give --zone, "
    "such as --zone=us-west4-a",
  )
  nodes = [f"--node-id={job.name}"]
  if job.slices > 1:
    nodes = [f"--node-count={job.slices}", f"--node-prefix={job.name}"]
  create = [
    f"--accelerator-type={tpu_slice.accelerator_type}",
    f"--runtime-version={tpu_slice.tpu.runtime}",
    *nodes,
    *(["--spot"] if job.spot else []),
    *job.flags,
  ]
  worker = [
    f"name={job.name}",
    f"restarts={job.restarts}",
    f"grace={jobs.GRACE}",
    # A TPU VM does not tell whether it is one of several.
    f"multihost={int(job.slices * tpu_slice.hosts > 1)}",
    jobs.bash_array("command", job.command),
    jobs.shell_part("worker"),
  ]
  return "\n".join(
    [
      "#!/usr/bin/env bash",
      f"# {job.slices} x {job.topology} on Cloud TPU VMs: "
      f"{job.slices * tpu_slice.hosts} hosts. Run it again at any",
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
