"""GKE: a JobSet, which restarts what has ended."""

from typing import Any

import yaml

from fs_jax.machine import errors, hardware
from fs_jax.machine.pods import job as jobs


def manifest(job: jobs.Job) -> str:
  """A JobSet in YAML: one Job a slice, one pod a host.

  The cluster needs JobSet 0.10 or later (onJobFailureMessagePatterns).

  Raises:
    ValueError: a topology, workdir, config, image or name that GKE cannot use.
  """
  tpu_slice = hardware.parse_slice(job.topology)
  jobs.check_shared(job)
  jobs.require(
    job.image,
    "image: must name a container with this repository; got ''. give --image, "
    "launch/README.md says how to build one",
  )
  jobs.require(
    job.slices == 1 or tpu_slice.hosts > 1,
    "topology: must have several hosts where GKE joins several slices; got "
    f"{job.topology!r}. take a larger shape, or --slices=1",
  )
  # Pods are named after the job, with five letters added.
  room = 63 - len(f"-slice-{job.slices - 1}-{tpu_slice.hosts - 1}-abcde")
  jobs.require(
    len(job.name) <= room,
    f"name: must be at most {room} letters for this many pods; got "
    f"{job.name!r}. give a shorter --name",
  )
  metadata: dict[str, Any] = {"name": job.name}
  if tpu_slice.hosts > 1:  # a slice takes a whole node pool
    pool = "cloud.google.com/gke-nodepool"
    metadata["annotations"] = {
      "alpha.jobset.sigs.k8s.io/exclusive-topology": pool
    }
  replicated = {
    "name": "slice",
    "replicas": job.slices,
    "template": {"spec": _job_spec(job, tpu_slice)},
  }
  manifest = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      "failurePolicy": _failure_policy(job.restarts),
      "replicatedJobs": [replicated],
    },
  }
  hosts = job.slices * tpu_slice.hosts
  return (
    f"# {job.slices} x {job.topology} on GKE: {hosts} hosts, machine type "
    f"{tpu_slice.machine_type}.\n"
    + yaml.safe_dump(manifest, sort_keys=False, width=1000)
  )


def _failure_policy(restarts: int) -> dict[str, Any]:
  """What JobSet does when a Job has failed: the first rule that matches.

  The exit code is in Kubernetes' message only. Should that text ever change, no
  rule matches and every restart counts: a job then neither repeats bad input
  for ever nor gives up at its first preemption.
  """

  def rule(name: str, action: str, *messages: str) -> dict[str, Any]:
    return {
      "name": name,
      "action": action,
      "onJobFailureReasons": ["PodFailurePolicy"],
      "onJobFailureMessagePatterns": list(messages),
    }

  return {
    "maxRestarts": restarts,
    "rules": [
      rule(
        "endsTheSameWayAgain",
        "FailJobSet",
        f"exit code ({'|'.join(map(str, errors.FINAL))}) ",
      ),
      rule(
        "toldToStop",
        "RestartJobSetAndIgnoreMaxRestarts",
        f"exit code {errors.PREEMPTED} ",
        "condition DisruptionTarget ",
      ),
    ],
  }


def _job_spec(job: jobs.Job, tpu_slice: hardware.Slice) -> dict[str, Any]:
  """One slice. Its pods fail together, as none can go on without the others."""
  codes = {
    "containerName": "train",
    "operator": "In",
    "values": [*errors.FINAL, errors.PREEMPTED],
  }
  evicted = [{"type": "DisruptionTarget", "status": "True"}]
  return {
    "parallelism": tpu_slice.hosts,
    "completions": tpu_slice.hosts,
    # GKE gives indexed pods TPU_WORKER_ID and TPU_WORKER_HOSTNAMES, which JAX
    # and libtpu read; a single host needs neither.
    "completionMode": "Indexed",
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [
        {"action": "FailJob", "onExitCodes": codes},
        {"action": "FailJob", "onPodConditions": evicted},
      ]
    },
    "template": {"spec": _pod_spec(job, tpu_slice)},
  }


def _pod_spec(job: jobs.Job, tpu_slice: hardware.Slice) -> dict[str, Any]:
  # Otherwise a process without its TPU would silently train on the CPU.
  env: list[dict[str, Any]] = [{"name": "JAX_PLATFORMS", "value": "tpu,cpu"}]
  spec: dict[str, Any] = {
    "restartPolicy": "Never",  # podFailurePolicy works with no other
    "terminationGracePeriodSeconds": jobs.GRACE,
    "nodeSelector": {
      "cloud.google.com/gke-tpu-accelerator": tpu_slice.tpu.label,
      "cloud.google.com/gke-tpu-topology": tpu_slice.shape,
    },
  }
  if job.spot:
    spec["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
  if job.account:
    spec["serviceAccountName"] = job.account
  if job.slices > 1:
    # Slices talk over the hosts' network, which is faster than a pod's.
    spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    index = "metadata.labels['jobset.sigs.k8s.io/job-index']"
    first = f"{job.name}-slice-0-0.{job.name}"
    env += [
      {"name": "MEGASCALE_COORDINATOR_ADDRESS", "value": first},
      {"name": "MEGASCALE_NUM_SLICES", "value": str(job.slices)},
      {
        "name": "MEGASCALE_SLICE_ID",
        "valueFrom": {"fieldRef": {"fieldPath": index}},
      },
    ]
  chips = {"google.com/tpu": tpu_slice.chips_per_host}
  container = {
    "name": "train",
    "image": job.image,
    "command": list(job.command),
    "env": env,
    "resources": {"requests": dict(chips), "limits": dict(chips)},
  }
  return spec | {"containers": [container]}
