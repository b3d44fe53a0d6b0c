"""Measures the README's claims: three seeds, with controls.

  python -m launch.evidence --workdir=runs/evidence

For each seed it trains Fast, Slow, distilled Fast, and Fast for all the time
that distillation and its teacher take ("fast_longer"). It evaluates all rankers
on the same test queries, prints the tables and verdicts, and writes them to
evidence.json and evidence.md. A killed run continues where it stopped.
"""

from collections.abc import Sequence

from absl import flags

from configs import scenes
from fs_jax.evaluate.studies import evidence
from fs_jax.machine import compile_cache
from launch import cli

_WORKDIR = flags.DEFINE_string("workdir", "runs/evidence", "output folder")
_SEEDS = flags.DEFINE_list(
  "seeds", ["3", "4", "5"], "seeds of data and parameters"
)


def main(_: Sequence[str]) -> None:
  seeds = []
  for seed in _SEEDS.value:
    if not seed.isdigit():
      raise ValueError(f"--seeds: must be numbers; got {seed!r}. try 3,4,5")
    seeds.append(int(seed))
  compile_cache.enable()
  evidence.measure(scenes.get_config, _WORKDIR.value, seeds)


if __name__ == "__main__":
  cli.run(main, __doc__)
