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
    require(
      re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", self.name),
      "name: must be at most 63 of a-z, 0-9 and -, begin with a letter and not "
      f"end with -; got {self.name!r}. give another --name",
    )
    require(
      self.slices >= 1 and self.restarts >= 0,
      "slices, restarts: must be at least 1 and 0; got "
      f"{self.slices}, {self.restarts}. raise them",
    )
    for word in (*self.command, *self.flags):
      require(
        word.isprintable(),
        f"command: must be one line; got {word!r}. take the line breaks out",
      )
    for flag in self.flags:
      require(
        flag.startswith("-"),
        f"flags: must each begin with -; got {flag!r}. write --key=value",
      )


def require(ok: object, message: str) -> None:
  if not ok:
    raise ValueError(message)


def check_shared(job: Job) -> None:
  """Refuses what a host in a cloud would not find."""
  require(
    job.workdir.startswith("gs://"),
    "workdir: must be storage that all hosts see; got "
    f"{job.workdir!r}. give --workdir=gs://<bucket>/<folder>",
  )
  require(
    not config_path(job).startswith(("/", "..")),
    "config: must be a file of this repository, hosts have no other; got "
    f"{config_path(job)!r}. copy it into configs/",
  )


def config_path(job: Job) -> str:
  """Path of the config's file."""
  given = [word for word in job.command if word.startswith("--config=")]
  require(given, f"command: must hold --config; got {job.command}. add it")
  return given[0].removeprefix("--config=").split(":")[0]


def bash_array(name: str, words: Sequence[str]) -> str:
  """A bash array, one word a line."""
  lines = [f"  {shlex.quote(word)}" for word in words]
  return "\n".join([f"{name}=(", *lines, ")"])


def shell_part(name: str) -> str:
  """What follows the variables; in a file of its own, so it lints as shell."""
  text = resources.files(__package__).joinpath(f"{name}.sh").read_text()
  return text.rstrip("\n")
