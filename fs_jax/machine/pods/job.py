"""A training job on many hosts, rendered for gcloud, Kubernetes or SLURM.

Every process runs the same command; JAX discovers its peers from what the
engine tells it. `launch/pod.py` runs the rendered text. The engine restarts
what has ended: systemd on TPU VMs, JobSet on GKE, SLURM itself. It goes by the
exit codes of `errors`: 2 and 3 would end the same way again, 75 was told to
stop and resumes, anything else gets a few more attempts.
"""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from importlib import resources

GRACE = 120  # seconds from SIGTERM to SIGKILL: time for a checkpoint


@dataclasses.dataclass(frozen=True)
class Job:
  """A training, and where to run it."""

  name: str
  command: tuple[str, ...]  # every process's; has --config=...
  workdir: str
  topology: str  # "v5e:16x16", or "h100:4x8" = four nodes of eight GPUs
  slices: int = 1
  restarts: int = 10  # after crashes; being told to stop is not one
  image: str = ""  # gke: a container image with this repository
  account: str = ""  # gke: Kubernetes service account that may use gs://
  zone: str = ""  # tpu-vm
  spot: bool = False  # tpu-vm, gke: cheaper, but may be reclaimed at any time
  flags: tuple[str, ...] = ()  # extra flags for the engine's own command

  def __post_init__(self) -> None:
    require(
      re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", self.name),
      "name: must be at most 63 of a-z, 0-9 and -, begin with a letter and not "
      f"end with -; got {self.name!r}. give a --name such as coco-fast",
    )
    require(
      self.slices >= 1 and self.restarts >= 0,
      "slices, restarts: must be at least 1 and 0; got "
      f"{self.slices}, {self.restarts}. use slices=1 and restarts=0 or more",
    )
    for word in (*self.command, *self.flags):
      require(
        word.isprintable(),
        f"command: must be one line; got {word!r}. remove its line breaks",
      )
    for flag in self.flags:
      require(
        flag.startswith("-"),
        f"flags: must each begin with -; got {flag!r}. write --key=value",
      )


def require(ok: object, message: str) -> None:
  """Raises a ValueError with `message` unless `ok`."""
  if not ok:
    raise ValueError(message)


def check_shared(job: Job) -> None:
  """Refuses paths that a host in a cloud would not find."""
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
  """The path of the config's file."""
  given = [word for word in job.command if word.startswith("--config=")]
  require(
    given,
    f"command: must hold --config; got {job.command}. add "
    "--config=configs/<file>.py:<stage>",
  )
  return given[0].removeprefix("--config=").split(":")[0]


def bash_array(name: str, words: Sequence[str]) -> str:
  """A bash array, one word per line."""
  lines = [f"  {shlex.quote(word)}" for word in words]
  return "\n".join([f"{name}=(", *lines, ")"])


def shell_part(name: str) -> str:
  """The shell code after the variables, in a file of its own to be linted."""
  text = resources.files(__package__).joinpath(f"{name}.sh").read_text()
  return text.rstrip("\n")
