"""Evaluates a workdir's rankers on a split, all on the same queries.

  python -m launch.evaluate --workdir=runs/quickstart --split=validation

Rows: Fast, Fast distilled, Slow alone over the whole gallery, Fast + re-rank at
several K; columns: R@1/5/10 with 95 % intervals over pictures, R@1 inside the
group of look-alikes, ms per query by stage. Weights, vectors, memories, index
and answers are kept beside the stages and the gallery: asked again, it only
adds up. What belongs to other models, weights, visuals or queries is made anew.
With --fit, it fits gamma, beta and tau on validation where they are missing or
of other models, and ends.
"""

from absl import flags
from etils import epath

from fs_jax.evaluate import results
from fs_jax.evaluate.studies import study
from fs_jax.machine import compile_cache
from fs_jax.runs import layout
from fs_jax.search import weigh
from launch import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "trained fast, slow, distill")
_SPLIT = flags.DEFINE_string("split", "test", "gallery and queries")
_QUERIES = flags.DEFINE_integer("queries", 512, "asked", lower_bound=2)
_FIT = flags.DEFINE_bool("fit", False, "fit the weights, and no more")


def main(_) -> None:
  cli.need("workdir")
  workdir = epath.Path(_WORKDIR.value)
  compile_cache.enable()
  if _FIT.value:
    names = weigh.weigh_all(workdir)
    print(f"{workdir}: weights of slow with {' and '.join(names)} are fitted")
    return
  made = study.evaluate_split(workdir, _SPLIT.value, _QUERIES.value)
  results.show(made)
  print(f"written: {layout.report(workdir, _SPLIT.value, _QUERIES.value)}")


if __name__ == "__main__":
  cli.run(main, __doc__)
