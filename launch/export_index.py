"""Builds the index that serves Fast retrieval, and measures its recall.

  python -m launch.export_index --gallery=runs/x/gallery/test \\
      --run=runs/x/distill

Reads the vectors of the gallery and writes the index beside them. ScaNN where
it is installed, exact search elsewhere. How hard it searches is
tuned: the cheapest that finds --recall of the best 10 and of the best 100.
With --run, recall against exact search is measured on real queries, the
validation captions of that run; without, on noisy copies of the vectors, which
flatters. An index that is there is built anew; one of other models or visuals
only with --replace.
"""

from typing import Any, cast

from absl import flags
from etils import epath

from fs_jax.gallery import corpus, encode, index, scann
from fs_jax.machine import commands, provenance
from fs_jax.runs import layout, stages
from launch import cli

_GALLERY = flags.DEFINE_string("gallery", None, "folder that encode wrote")
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
  cli.need("gallery")
  where = layout.Gallery(epath.Path(_GALLERY.value))
  parts = corpus.read_contract(where.vectors)
  expected, queries = None, None
  if _RUN.value:
    run = stages.load(_RUN.value)
    expected, queries = run.contract, encode.sample_queries(run)
  vectors = corpus.load(where.vectors, expected, mend=_encode_again(parts))
  provenance.folder_needed(
    where.index,
    "index",
    parts,
    stale="replace" if _REPLACE.value else "refuse",
    mend=f"make it anew: {_command()} --replace",
  )
  manifest = index.build(
    vectors,
    where.index,
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
    f"{where.index}: {manifest['backend']}, {manifest['count']} rows, "
    f"recall@10 {manifest['recall_at_10']:.4f} and "
    f"recall@100 {manifest['recall_at_100']:.4f} of exact search on "
    f"{manifest['recall_queries']} queries ({manifest['recall_measured_on']})"
  )
  workdir, split = where.folder.parent.parent, where.folder.name
  if where == layout.gallery(workdir, split):  # where search looks
    words = ["a fox left of a car", f"--workdir={workdir}"]
    words += [f"--split={split}"] * (split != "test")
    if not stages.is_finished(layout.stage(workdir, layout.SLOW)):
      words.append("--rerank=0")
    cli.then(commands.command("search", *words))


def _command() -> str:
  """What was typed, for who has to type it again."""
  words = [f"--gallery={_GALLERY.value}"]
  words += [f"--run={_RUN.value}"] * bool(_RUN.value)
  return commands.command("export_index", *words)


def _encode_again(parts: provenance.Contract) -> str:
  """The command that encodes the same split with the run of this one."""
  words: list[str] = []
  if _RUN.value:
    words.append(f"--run={_RUN.value}")
    named = parts.get("split", {}).get("split")
    words += [f"--split={named}"] * bool(named)
    words += [f"--out={_GALLERY.value}", "--replace"]
  return f"encode it again: {commands.command('encode', *words)}"


if __name__ == "__main__":
  cli.run(main, __doc__)
