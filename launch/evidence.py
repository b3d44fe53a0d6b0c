"""The measurements behind the README's claims: three seeds, with controls.

  python -m launch.evidence --workdir=runs/evidence

For each seed: Fast, Fast given all the time of distillation and its teacher
("fast_longer"), Slow, distilled Fast; all rankers on the same test queries.
Prints and writes evidence.json and evidence.md, verdicts included. Killed, it
goes on.
"""

from absl import flags

from configs import scenes
from fs_jax.evaluate.studies import evidence
from fs_jax.machine import compile_cache
from launch import cli

_WORKDIR = flags.DEFINE_string("workdir", "runs/evidence", "where all goes")
_SEEDS = flags.DEFINE_list("seeds", ["3", "4", "5"], "of data and parameters")


def main(_) -> None:
  seeds = []
  for seed in _SEEDS.value:
    if not seed.isdigit():
      raise ValueError(f"--seeds: must be numbers; got {seed!r}. try 3,4,5")
    seeds.append(int(seed))
  compile_cache.enable()
  evidence.evidence(scenes.get_config, _WORKDIR.value, seeds)


if __name__ == "__main__":
  cli.run(main, __doc__)
