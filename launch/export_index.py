"""Builds the index that Fast searches, and measures its recall.

  python -m launch.export_index --gallery=runs/x/gallery/test \\
      --run=runs/x/distill

Reads the gallery's vectors and writes the index beside them: ScaNN where it is
installed, exact search elsewhere. ScaNN is tuned to the cheapest search that
finds --recall of the best 10 and of the best 100.

With --run, recall against exact search is measured on real queries: the
validation captions of that run. Without it, queries are noisy copies of the
vectors, which overestimates recall. An existing index is rebuilt; one of other
models or visuals, only with --replace.
"""

from collections.abc import Sequence
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
  "replace", False, "rebuild an index of other models or visuals"
)
_LEAVES = flags.DEFINE_integer(
  "leaves", 0, "leaves of ScaNN's tree; 0 = 1.5 sqrt(rows)"
)
_RECALL = flags.DEFINE_float(
  "recall",
  scann.Settings.recall,
  "recall to reach at 10 and at 100 answers, against exact search",
  lower_bound=0,
  upper_bound=1,
)
_SEARCHED = flags.DEFINE_integer(
  "leaves_to_search",
  scann.Settings.leaves_to_search,
  "leaves that a query searches; 0 = tuned, with --reorder, for --recall",
  lower_bound=0,
)
_REORDER = flags.DEFINE_integer(
  "reorder",
  scann.Settings.reorder,
  "rows that a query rescores exactly; 0 = tuned",
  lower_bound=0,
)


def main(_: Sequence[str]) -> None:
  cli.need("gallery")
  gallery = layout.Gallery(epath.Path(_GALLERY.value))
  contract = corpus.read_contract(gallery.vectors)
  expected, queries = None, None
  if _RUN.value:
    run = stages.load(_RUN.value)
    expected, queries = run.contract, encode.sample_queries(run)
  vectors = corpus.load(gallery.vectors, expected, mend=_encode_again(contract))
  provenance.folder_needed(
    gallery.index,
    "index",
    contract,
    stale="replace" if _REPLACE.value else "refuse",
    mend=f"make it anew: {_command()} --replace",
  )
  manifest = index.build(
    vectors,
    gallery.index,
    contract,
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
    f"{gallery.index}: {manifest['backend']}, {manifest['count']} rows, "
    f"recall@10 {manifest['recall_at_10']:.4f} and "
    f"recall@100 {manifest['recall_at_100']:.4f} of exact search on "
    f"{manifest['recall_queries']} queries ({manifest['recall_measured_on']})"
  )
  workdir, split = gallery.folder.parent.parent, gallery.folder.name
  if gallery == layout.gallery(workdir, split):  # launch.search finds it there
    words = ["a fox left of a car", f"--workdir={workdir}"]
    if split != "test":
      words.append(f"--split={split}")
    if not stages.is_finished(layout.stage(workdir, layout.SLOW)):
      words.append("--rerank=0")
    cli.print_next(commands.command("search", *words))


def _command() -> str:
  """The command as it was typed, so that a message can repeat it."""
  words = cli.flag_words("gallery", "run")
  return commands.command("export_index", *words)


def _encode_again(contract: provenance.Contract) -> str:
  """The command that encodes the gallery's split with --run."""
  words: list[str] = []
  if _RUN.value:
    words.append(f"--run={_RUN.value}")
    split = contract.get("split", {}).get("split")
    if split:
      words.append(f"--split={split}")
    words += [f"--out={_GALLERY.value}", "--replace"]
  return f"encode it again: {commands.command('encode', *words)}"


if __name__ == "__main__":
  cli.run(main, __doc__)
