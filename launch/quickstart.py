"""The whole of fs_jax on small data: minutes on two cores.

  python -m launch.quickstart --workdir=runs/quickstart

Draws scenes of emoji, trains Fast and Slow, distils Slow into Fast, exports a
ScaNN index, searches, re-ranks and evaluates; writes report.json and index.html
in the workdir. Killed, it goes on where it was; done, it says so in seconds.

`make quickstart SEED=7` draws other data and starts from other parameters;
`BUDGET=small` trains half of the steps: a smoke test, not a result.
"""

from absl import flags

from configs import scenes
from fs_jax.evaluate.studies import study
from fs_jax.machine import commands, compile_cache
from launch import cli

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "where all goes")
_SEED = flags.DEFINE_integer("seed", 3, "of the data and of every parameter")
_BUDGET = flags.DEFINE_enum(
  "budget", "full", ["full", "small"], "small: half of the training"
)


def main(_) -> None:
  compile_cache.enable()
  made = study.quickstart(
    lambda stage: scenes.get_config(stage),
    _WORKDIR.value,
    seed=_SEED.value,
    small=_BUDGET.value == "small",
  )
  cli.then(
    commands.command("search", made["example"], f"--workdir={_WORKDIR.value}"),
    f"open {_WORKDIR.value}/index.html",
  )


if __name__ == "__main__":
  cli.run(main, __doc__)
