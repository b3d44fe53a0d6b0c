"""Builds the index that serves Fast retrieval, and measures its recall.

  python -m launch.export_index --corpus=runs/x/gallery/corpus \\
      --out=runs/x/gallery/index --run=runs/x/distill

ScaNN where it is installed, exact search elsewhere. How hard it searches is
tuned: the cheapest that finds --recall of the best 10 and of the best 100.
With --run, recall against exact search is measured on real queries, the
validation captions of that run; without, on noisy copies of the vectors, which
flatters. An index that is there is built anew; one of other models or visuals
only with --replace.
"""

from typing import Any, cast

from absl import flags
from etils import epath

from fs_jax.data import pipeline, sources
from fs_jax.gallery import corpus, encode, index, scann
from fs_jax.machine import provenance
from fs_jax.runs import stages
from launch import cli

_CORPUS = flags.DEFINE_string("corpus", None, "folder that encode wrote")
_OUT = flags.DEFINE_string("out", None, "folder of the index")
_RUN = flags.DEFINE_string("run", "", "stage whose queries measure recall")
_KIND = flags.DEFINE_enum("kind", "auto", ["auto", "scann", "exact"], "backend")
_REPLACE = flags.DEFINE_bool(
  "replace", False, "make anew an index of other models or visuals"
)
_LEAVES = flags.DEFINE_integer("leaves", 0, "of the tree; 0 = 1.5 sqrt(rows)")
_RECALL = flags.DEFINE_float(
  "recall",
  scann.Settings.recall,
  "to reach at 10 and at 100 answers, against exact search",
  lower_bound=0,
  upper_bound=1,
)
_SEARCHED = flags.DEFINE_integer(
  "leaves_to_search",
  scann.Settings.leaves_to_search,
  "leaves that a query looks into; 0 = tuned, with --reorder, for --recall",
  lower_bound=0,
)
_REORDER = flags.DEFINE_integer(
  "reorder",
  scann.Settings.reorder,
  "rows that a query scores again exactly; 0 = tuned",
  lower_bound=0,
)


def main(_) -> None:
  cli.need("corpus", "out")
  parts, queries = corpus.read_contract(_CORPUS.value), None
  expected = None
  if _RUN.value:
    run = stages.load(_RUN.value)
    expected = run.contract
    source = sources.open_lazily(run.cfg.data, run.cfg.data.validation)
    text, _ = pipeline.caption_table(source, run.tokenizer)
    queries = encode.text_vectors(run, text[:1024])
  gallery = corpus.load(_CORPUS.value, expected, mend=_encode_again(parts))
  provenance.folder_needed(
    _OUT.value,
    "index",
    parts,
    stale="replace" if _REPLACE.value else "refuse",
    mend=f"make it anew: {_command()} --replace",
  )
  manifest = index.build(
    gallery,
    _OUT.value,
    parts,
    kind=cast(Any, _KIND.value),
    settings=scann.Settings(
      leaves=_LEAVES.value,
      recall=_RECALL.value,
      leaves_to_search=_SEARCHED.value,
      reorder=_REORDER.value,
    ),
    queries=queries,
  )
  if manifest["warning"]:
    print(f"warning: {manifest['warning']}")
  print(
    f"{_OUT.value}: {manifest['backend']}, {manifest['count']} rows, "
    f"recall@10 {manifest['recall_at_10']:.4f} and "
    f"recall@100 {manifest['recall_at_100']:.4f} of exact search on "
    f"{manifest['recall_queries']} queries ({manifest['recall_measured_on']})"
  )
  # A workdir holds gallery/index: where search and evaluate look.
  workdir = epath.Path(_OUT.value).parent.parent
  cli.then(f'python -m launch.search "a fox left of a car" --workdir={workdir}')


def _command() -> str:
  """What was typed, for who has to type it again."""
  run = f" --run={_RUN.value}" if _RUN.value else ""
  return (
    f"python -m launch.export_index --corpus={_CORPUS.value} "
    f"--out={_OUT.value}{run}"
  )


def _encode_again(parts: provenance.Contract) -> str:
  """The command that encodes the same split with the run of this one."""
  if not _RUN.value:
    return "encode it again: python -m launch.encode"
  named = parts.get("split", {}).get("split")
  split = f"--split={named} " if named else ""
  return (
    f"encode it again: python -m launch.encode --run={_RUN.value} {split}"
    f"--out={epath.Path(_CORPUS.value).parent} --replace"
  )


if __name__ == "__main__":
  cli.run(main, __doc__)
