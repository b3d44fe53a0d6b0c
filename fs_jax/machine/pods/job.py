"""What starts a training on many hosts: text for gcloud, Kubernetes and SLURM.

Every process runs the same command; JAX finds its peers by what the engine
tells it. Who runs the text is `launch/pod.py`; who starts again what has ended
is the engine: systemd on TPU VMs, JobSet on GKE, SLURM itself. They go by the
exit codes of `errors`: 2 and 3 would end the same way again, 75 was told
to stop and goes on where it was, anything else gets a few more attempts.
"""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from importlib import resources
from typing import Any

import yaml

from fs_jax.machine import errors, hardware

GRACE = 120  # seconds from SIGTERM to SIGKILL: a checkpoint has to fit in


@dataclasses.dataclass(frozen=True)
class Job:
  """A training, and where it shall run."""

  name: str
  command: tuple[str, ...]  # of every process; holds --config=...
  workdir: str
  topology: str  # "v5e:16x16", or "h100:4x8" = four nodes of eight GPUs
  slices: int = 1
  restarts: int = 10  # after crashes; being told to stop is none
  image: str = ""  # gke: a container image with this repository
  account: str = ""  # gke: Kubernetes service account that may use gs://
  zone: str = ""  # tpu-vm
  spot: bool = False  # tpu-vm, gke: cheaper, and taken away at any time
  flags: tuple[str, ...] = ()  # more flags for the engine's own command

  def __post_init__(self):
    _check(
      re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", self.name),
      "name: must be at most 63 of a-z, 0-9 and -, begin with a letter and not "
      f"end with -; got {self.name!r}. give another --name",
    )
    _check(
      self.slices >= 1 and self.restarts >= 0,
      "slices, restarts: must be at least 1 and 0; got "
      f"{self.slices}, {self.restarts}. raise them",
    )
    for word in (*self.command, *self.flags):
      _check(
        word.isprintable(),
        f"command: must be one line; got {word!r}. take the line breaks out",
      )
    for flag in self.flags:
      _check(
        flag.startswith("-"),
        f"flags: must each begin with -; got {flag!r}. write --key=value",
      )


def _check(ok: object, message: str) -> None:
  if not ok:
    raise ValueError(message)


def tpu_vm(job: Job) -> str:
  """A shell script: queued resources, the code on every host, a service.

  Raises:
    ValueError: a topology, workdir, config or zone that will not do.
  """
  at = hardware.tpu_slice(job.topology)
  _check_shared(job)
  _check(job.zone, "zone: must be one with such TPUs; got ''. give --zone")
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
    f"grace={GRACE}",
    # A TPU VM does not say whether it is one of several.
    f"multihost={int(job.slices * at.hosts > 1)}",
    _array("command", job.command),
    _shell("worker"),
  ]
  return "\n".join(
    [
      "#!/usr/bin/env bash",
      f"# {job.slices} x {job.topology} on Cloud TPU VMs: "
      f"{job.slices * at.hosts} hosts. Run it again at any",
      "# time: it makes what is missing and starts what has stopped.",
      f"name={job.name}",
      f"zone={shlex.quote(job.zone)}",
      f"config={shlex.quote(_config(job))}",
      _array("create", create),
      "IFS= read -r -d '' worker <<'WORKER' || true",
      *worker,
      "WORKER",
      _shell("tpu_vm"),
      "",
    ]
  )


def gke(job: Job) -> str:
  """A JobSet in YAML: one Job a slice, one pod a host.

  The cluster needs JobSet 0.10 or later (onJobFailureMessagePatterns).

  Raises:
    ValueError: a topology, workdir, config, image or name that will not do.
  """
  at = hardware.tpu_slice(job.topology)
  _check_shared(job)
  _check(
    job.image,
    "image: must name a container with this repository; got ''. give --image, "
    "launch/README.md says how to build one",
  )
  _check(
    job.slices == 1 or at.hosts > 1,
    "topology: must have several hosts where GKE joins several slices; got "
    f"{job.topology!r}. take a larger shape, or --slices=1",
  )
  # Pods are named after it, with five letters more at the end.
  room = 63 - len(f"-slice-{job.slices - 1}-{at.hosts - 1}-abcde")
  _check(
    len(job.name) <= room,
    f"name: must be at most {room} letters for this many pods; got "
    f"{job.name!r}. give a shorter --name",
  )
  metadata: dict[str, Any] = {"name": job.name}
  if at.hosts > 1:  # a slice is a node pool, and takes all of it
    pool = "cloud.google.com/gke-nodepool"
    metadata["annotations"] = {
      "alpha.jobset.sigs.k8s.io/exclusive-topology": pool
    }
  replicated = {
    "name": "slice",
    "replicas": job.slices,
    "template": {"spec": _job_spec(job, at)},
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
  return (
    f"# {job.slices} x {job.topology} on GKE: {job.slices * at.hosts} hosts, "
    f"machine type {at.machine_type}.\n"
    + yaml.safe_dump(manifest, sort_keys=False, width=1000)
  )


def _failure_policy(restarts: int) -> dict[str, Any]:
  """What JobSet does when a Job has failed: the first rule that fits.

  Which exit code it was is known from Kubernetes' message alone. Should that
  text ever change, no rule fits and every restart counts: a pod then neither
  repeats bad input for ever nor is given up at its first preemption.
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


def _job_spec(job: Job, at: hardware.Slice) -> dict[str, Any]:
  """One slice. Its pods fail together: none is of use without the others."""
  codes = {
    "containerName": "train",
    "operator": "In",
    "values": [*errors.FINAL, errors.PREEMPTED],
  }
  evicted = [{"type": "DisruptionTarget", "status": "True"}]
  return {
    "parallelism": at.hosts,
    "completions": at.hosts,
    # GKE gives indexed pods TPU_WORKER_ID and TPU_WORKER_HOSTNAMES, which JAX
    # and libtpu look for; one host alone needs neither.
    "completionMode": "Indexed",
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [
        {"action": "FailJob", "onExitCodes": codes},
        {"action": "FailJob", "onPodConditions": evicted},
      ]
    },
    "template": {"spec": _pod_spec(job, at)},
  }


def _pod_spec(job: Job, at: hardware.Slice) -> dict[str, Any]:
  # Without its TPU a process would else train on the CPU, in silence.
  env: list[dict[str, Any]] = [{"name": "JAX_PLATFORMS", "value": "tpu,cpu"}]
  spec: dict[str, Any] = {
    "restartPolicy": "Never",  # podFailurePolicy works with no other
    "terminationGracePeriodSeconds": GRACE,
    "nodeSelector": {
      "cloud.google.com/gke-tpu-accelerator": at.tpu.label,
      "cloud.google.com/gke-tpu-topology": at.shape,
    },
  }
  if job.spot:
    spec["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
  if job.account:
    spec["serviceAccountName"] = job.account
  if job.slices > 1:
    # Slices talk over the hosts' network, which is faster without a pod's.
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
  chips = {"google.com/tpu": at.chips_per_host}
  container = {
    "name": "train",
    "image": job.image,
    "command": list(job.command),
    "env": env,
    "resources": {"requests": dict(chips), "limits": dict(chips)},
  }
  return spec | {"containers": [container]}


def slurm(job: Job) -> str:
  """An sbatch script: one process a GPU.

  Raises:
    ValueError: a topology or workdir that will not do, or what SLURM has not.
  """
  at = hardware.gpus(job.topology)
  _check(
    job.workdir.startswith("/") or "://" in job.workdir,
    "workdir: must be an absolute path that all nodes see; got "
    f"{job.workdir!r}. give such a --workdir",
  )
  _check(
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
    f"--signal=B:TERM@{GRACE}",
    *job.flags,
  ]
  return "\n".join(
    [
      "#!/bin/bash",
      *(f"#SBATCH {option}" for option in options),
      f"restarts={job.restarts}",
      f"patience={GRACE - 20}",
      _array("command", job.command),
      _shell("slurm"),
      "",
    ]
  )


def _check_shared(job: Job) -> None:
  """Refuses what a host in a cloud would not find."""
  _check(
    job.workdir.startswith("gs://"),
    "workdir: must be storage that all hosts see; got "
    f"{job.workdir!r}. give --workdir=gs://<bucket>/<folder>",
  )
  _check(
    not _config(job).startswith(("/", "..")),
    "config: must be a file of this repository, hosts have no other; got "
    f"{_config(job)!r}. copy it into configs/",
  )


def _config(job: Job) -> str:
  """Path of the config's file."""
  given = [word for word in job.command if word.startswith("--config=")]
  _check(given, f"command: must hold --config; got {job.command}. add it")
  return given[0].removeprefix("--config=").split(":")[0]


def _array(name: str, words: Sequence[str]) -> str:
  """A bash array, one word a line."""
  lines = [f"  {shlex.quote(word)}" for word in words]
  return "\n".join([f"{name}=(", *lines, ")"])


def _shell(name: str) -> str:
  """What follows the variables; in a file of its own, so it lints as shell."""
  text = resources.files(__package__).joinpath(f"{name}.sh").read_text()
  return text.rstrip("\n")
