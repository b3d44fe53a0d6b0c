"""Runs all of fs_jax on small data: minutes on two cores.

  python -m launch.quickstart --workdir=runs/quickstart

Draws scenes of emoji, trains Fast and Slow, distils Slow into Fast, builds a
ScaNN index, searches, re-ranks and evaluates. Writes report.json and index.html
into the workdir. A killed run continues where it stopped; a finished one
prints its results in seconds.

`make quickstart SEED=7` draws other data and starts from other parameters;
`BUDGET=small` trains for half of the steps: a smoke test, not a result.
"""

from collections.abc import Sequence

from absl import flags

from configs import scenes
from fs_jax.evaluate.studies import study
from fs_jax.machine import commands, compile_cache
from launch import cli

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "output folder")
_SEED = flags.DEFINE_integer(
  "seed", 3, "seed of the data and of all parameters"
)
_BUDGET = flags.DEFINE_enum(
  "budget", "full", ["full", "small"], "small: half of the steps"
)


def main(_: Sequence[str]) -> None:
  compile_cache.enable()
  report = study.quickstart(
    scenes.get_config,
    _WORKDIR.value,
    seed=_SEED.value,
    small=_BUDGET.value == "small",
  )
  cli.print_next(
    commands.command(
      "search", report["example"], f"--workdir={_WORKDIR.value}"
    ),
    f"open {_WORKDIR.value}/index.html",
  )


if __name__ == "__main__":
  cli.run(main, __doc__)
