"""Searches a gallery in words: Fast finds candidates, Slow puts them in order.

  python -m launch.search "a big fox left of a car" --workdir=runs/quickstart

Prints the answers with the time of each stage, and draws them (--sheet). A
workdir has the stages (fast or distill, slow) and a gallery: what
`make quickstart` leaves, or train, encode and export_index one by one.
"""

import numpy as np
from absl import flags
from etils import epath
from rich import console as rich_console
from rich import table as rich_table

from fs_jax import index as indices
from fs_jax import page, rerank, retrieve, runs, store, study
from fs_jax.data import sources
from launch import cli

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "trained stages")
_SPLIT = flags.DEFINE_string("split", "test", "the gallery")
_K = flags.DEFINE_integer("k", 10, "answers", lower_bound=1)
_RERANK = flags.DEFINE_integer(
  "rerank", 20, "candidates that Slow looks at; 0 = Fast alone", lower_bound=0
)
_SHEET = flags.DEFINE_string("sheet", "search.png", 'picture; "" = none')


def main(argv) -> None:
  query = cli.only(argv, 'say what to look for: search "a fox left of a car"')
  found = study.find_gallery(epath.Path(_WORKDIR.value), _SPLIT.value)
  fast = runs.load(found.fast)
  fast.tokenizer.check_query(query)  # before anything is loaded or compiled
  gallery = indices.load(found.index, {"fast": fast.fast_contract})
  scorer = fit = None
  if _RERANK.value:
    slow = runs.load(found.slow)
    parts = {"slow": slow.slow_contract()}
    memories = store.Store(found.store, parts, hashes=False)
    fit = runs.load_fit(found.fit, {"fast": fast.fast_contract, **parts})
    scorer = rerank.Scorer(slow, memories)
  search = retrieve.Retriever(fast, gallery, scorer, fit)
  ask = {"k": _K.value, "rerank_k": _RERANK.value}
  search([query], **ask)  # compiles; the second answer is what serving costs
  answer = search([query], **ask)
  source = sources.open_split(fast.cfg.data, _SPLIT.value)
  _print(query, answer, gallery.ids, source)
  if _SHEET.value:
    _draw(query, answer, source)


def _print(query, answer, ids, source) -> None:
  shown = rich_table.Table(title=query)
  for name in ("rank", "id", "score", "Fast's rank", "a caption of it"):
    shown.add_column(name, justify="left" if name[0] in "ai" else "right")
  before = [int(r) for r in answer.fast.rows[0]]
  rows, scores = answer.final.rows[0], answer.final.scores[0]
  for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1):
    if row < 0:
      break
    was = str(before.index(row) + 1) if row in before else f">{len(before)}"
    said = source.captions(int(row)) or ("",)
    shown.add_row(str(rank), ids[row], f"{score:.2f}", was, said[0])
  out = rich_console.Console()
  out.print(shown)
  if answer.unknown[0]:
    out.print(f"ignored, not in the vocabulary: {', '.join(answer.unknown[0])}")
  stages = "  ".join(f"{k} {v:.2f} ms" for k, v in answer.stages_ms.items())
  out.print(f"{stages}  (compiled before, {len(ids)} visuals)")
  out.print(f"[dim]{source.attribution}[/dim]")


def _draw(query, answer, source) -> None:
  rows, labels = [], []
  for label, found in (("Fast", answer.fast), ("re-ranked", answer.final)):
    listed = [int(r) for r in np.asarray(found.rows[0]) if r >= 0][:10]
    rows.append(list(source.visuals(listed)))
    labels.append(label)
  page.contact_sheet(_SHEET.value, query, rows, labels, source.attribution)
  print(f"drawn: {_SHEET.value}")


if __name__ == "__main__":
  cli.run(main, __doc__)
