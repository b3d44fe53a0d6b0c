"""Evaluates all rankers of a workdir on a split, with the same queries.

  python -m launch.evaluate --workdir=runs/quickstart --split=validation

The rows are Fast, Fast distilled, Slow alone on the whole gallery, and Fast
re-ranked at several K. The columns are R@1/5/10 with 95 % intervals over
pictures, R@1 inside the group of look-alikes, and ms per query by stage.

Weights, vectors, memories, index and answers are stored beside the stages and
the gallery, so a second run only computes the metrics. Results of other models,
weights, visuals or queries are rebuilt.

--fit only fits gamma, beta and tau on validation, where they are missing or
belong to other models.
"""

from collections.abc import Sequence

from absl import flags
from etils import epath

from fs_jax.evaluate import reports
from fs_jax.evaluate.studies import study
from fs_jax.machine import compile_cache
from fs_jax.runs import layout
from fs_jax.search import weigh
from launch import cli

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "folder of the trained stages fast, slow and distill"
)
_SPLIT = flags.DEFINE_string("split", "test", "split of gallery and queries")
_QUERIES = flags.DEFINE_integer(
  "queries", 512, "number of queries", lower_bound=2
)
_FIT = flags.DEFINE_bool("fit", False, "fit the weights and stop")


def main(_: Sequence[str]) -> None:
  cli.need("workdir")
  workdir = epath.Path(_WORKDIR.value)
  compile_cache.enable()
  if _FIT.value:
    names = weigh.weigh_all(workdir)
    print(f"{workdir}: weights of slow with {' and '.join(names)} are fitted")
    return
  report = study.evaluate_split(workdir, _SPLIT.value, _QUERIES.value)
  reports.show(report)
  print(f"written: {layout.report(workdir, _SPLIT.value, _QUERIES.value)}")


if __name__ == "__main__":
  cli.run(main, __doc__)
