"""Runs a program as several processes on this machine, as a pod would.

  python -m launch.local --processes=2 -- launch.train \\
      --config=configs/scenes.py:fast --workdir=runs/x

What follows -- is a module and its arguments. The processes meet over the
loopback (gloo); when one dies, all start again from the last checkpoint.
--devices=4 gives each four virtual CPU devices, to try a mesh.
"""

import sys

from absl import flags

from fs_jax.machine import console
from fs_jax.machine.pods import local
from launch import cli

_PROCESSES = flags.DEFINE_integer("processes", 2, "how many")
_DEVICES = flags.DEFINE_integer(
  "devices", 0, "virtual CPU devices of each; 0: those there are"
)
_RESTARTS = flags.DEFINE_integer("restarts", 5, "after crashes, at most")
_GRACE = flags.DEFINE_float(
  "grace", 30.0, "seconds to save in, before a process is killed"
)


def main(argv) -> None:
  if not argv:
    raise ValueError(
      "arguments: a module and its arguments must follow --; got none. "
      "--help shows an example"
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
