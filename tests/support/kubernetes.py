"""Reads a JobSet as an API server would, without one.

Kubernetes' part is its own schema: lightkube's models are its OpenAPI as typed
structs. JobSet's are the fields of `jobset.x-k8s.io/v1alpha2` that matter here,
after api/jobset/v1alpha2/jobset_types.go of JobSet 0.12.
"""

from typing import Any, Literal

import msgspec
from lightkube.models import batch_v1, meta_v1

Action = Literal[
  "FailJobSet",
  "RestartJobSet",
  "RestartJobSetAndIgnoreMaxRestarts",
  "RestartJob",
  "RestartJobAndIgnoreMaxRestarts",
]
Reason = Literal["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"]


class Rule(msgspec.Struct, omit_defaults=True):
  name: str
  action: Action
  onJobFailureReasons: list[Reason] | None = None
  onJobFailureMessagePatterns: list[str] | None = None
  targetReplicatedJobs: list[str] | None = None


class FailurePolicy(msgspec.Struct, omit_defaults=True):
  maxRestarts: int | None = None
  restartStrategy: Literal["Recreate", "BlockingRecreate"] | None = None
  rules: list[Rule] | None = None


class ReplicatedJob(msgspec.Struct, omit_defaults=True):
  name: str
  template: batch_v1.JobTemplateSpec
  replicas: int | None = None
  groupName: str | None = None


class Spec(msgspec.Struct, omit_defaults=True):
  replicatedJobs: list[ReplicatedJob]
  failurePolicy: FailurePolicy | None = None
  suspend: bool | None = None
  ttlSecondsAfterFinished: int | None = None


class JobSet(msgspec.Struct, omit_defaults=True):
  apiVersion: Literal["jobset.x-k8s.io/v1alpha2"]
  kind: Literal["JobSet"]
  metadata: meta_v1.ObjectMeta
  spec: Spec


def read(manifest: Any) -> JobSet:
  """The manifest, typed.

  Raises:
    ValueError: a field that is missing, unknown or of the wrong type or option.
  """
  read = msgspec.convert(manifest, JobSet)  # its errors are ValueErrors
  unknown = sorted(_paths(manifest) - _paths(msgspec.to_builtins(read)))
  if unknown:
    raise ValueError(f"unknown field `{unknown[0]}`")
  return read


def _paths(value: Any, where: str = "$") -> set[str]:
  """Paths of all that is said: models drop what they do not know."""
  if value is None:
    return set()
  inner: list[tuple[str, Any]] = []
  if isinstance(value, dict):
    inner = [(f"{where}.{key}", v) for key, v in value.items()]
  elif isinstance(value, list):
    inner = [(f"{where}[{i}]", v) for i, v in enumerate(value)]
  return {where}.union(*(_paths(v, path) for path, v in inner))
