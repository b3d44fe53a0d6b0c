"""Runs a program as several processes on this machine, as a pod would.

  python -m launch.local --processes=2 -- launch.train \\
      --config=configs/scenes.py:fast --workdir=runs/x

After -- comes a module with its arguments. The processes communicate over the
loopback interface (gloo). When one dies, all restart from the last checkpoint.
--devices=4 gives each process four virtual CPU devices, to try a mesh.
"""

import sys
from collections.abc import Sequence

from absl import flags

from fs_jax.machine import console
from fs_jax.machine.pods import local
from launch import cli

_PROCESSES = flags.DEFINE_integer("processes", 2, "number of processes")
_DEVICES = flags.DEFINE_integer(
  "devices", 0, "virtual CPU devices per process; 0: the machine's own devices"
)
_RESTARTS = flags.DEFINE_integer("restarts", 5, "most restarts after crashes")
_GRACE = flags.DEFINE_float(
  "grace", 30.0, "seconds that a process has to save before it is killed"
)


def main(argv: Sequence[str]) -> None:
  if not argv:
    raise ValueError(
      "arguments: a module and its arguments must follow --; got none. add "
      "them, as the example of --help does"
    )
  job = local.Job(
    [sys.executable, "-m", *argv],
    _PROCESSES.value,
    _DEVICES.value,
    _RESTARTS.value,
    _GRACE.value,
  )
  code = local.run(job, console.say)
  if code:
    sys.exit(code)


if __name__ == "__main__":
  cli.run(main, __doc__)
