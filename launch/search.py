"""Searches a gallery in words: Fast finds candidates, Slow puts them in order.

  python -m launch.search "a big fox left of a car" --workdir=runs/quickstart

Prints the answers with the time of each stage, and draws them (--sheet). A
workdir has the stages (fast or distill, slow) and a gallery: what
`make quickstart` leaves, or train, encode and export_index one by one.
"""

import time

import numpy as np
from absl import flags
from etils import epath
from rich import console as rich_console
from rich import markup
from rich import table as rich_table

from fs_jax.evaluate.page import sheet
from fs_jax.machine import compile_cache
from fs_jax.runs import stages
from fs_jax.search import workdir as workdirs
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
  compile_cache.keep(_WORKDIR.value)
  found = workdirs.find_gallery(epath.Path(_WORKDIR.value), _SPLIT.value)
  fast = stages.load(found.fast)
  fast.tokenizer.check_query(query)  # before more is loaded or compiled
  opened = workdirs.open_to_search(
    found, fast, _SPLIT.value, slow=_RERANK.value > 0
  )
  if warning := opened.searched.manifest.get("warning"):
    print(f"warning: {found.index}: {warning}")
  search, source, fit = opened.retriever(), opened.source, opened.fit
  ask = {"k": _K.value, "rerank_k": _RERANK.value}
  began = time.perf_counter()
  search([query], **ask)  # compiles; the second answer is what serving costs
  first = time.perf_counter() - began
  answer = search([query], **ask)
  _print(query, answer, source, first)
  if fit is not None and fit.k != _RERANK.value:
    print(
      f"the weights of both were fitted on {fit.k} candidates; Slow looked at "
      f"{_RERANK.value} here"
    )
  if _SHEET.value:
    _draw(query, answer, source)


def _print(query, answer, source, first) -> None:
  reranked = "rerank" in answer.stages_ms
  shown = rich_table.Table(title=markup.escape(query))
  for name in ("rank", "Fast", *(("both", "moved") if reranked else ()), "id"):
    shown.add_column(name, justify="right", no_wrap=True)
  shown.add_column("a caption of it")
  fast = [int(r) for r in answer.fast.rows[0]]
  rows, scores = answer.final.rows[0], answer.final.scores[0]
  for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1):
    if row < 0:
      break
    was = fast.index(row) + 1
    cells = [f"{answer.fast.scores[0][was - 1]:.3f}"]
    if reranked:
      cells += [f"{score:.3f}", _moved(was - rank)]
    said = (source.captions(int(row)) or ("",))[0]
    named = map(markup.escape, (source.ids[row], said))
    shown.add_row(str(rank), *cells, *named)
  out = rich_console.Console(highlight=False)
  out.print(shown)
  if answer.unknown[0]:
    words = ", ".join(answer.unknown[0])
    out.print(markup.escape(f"ignored, not in the vocabulary: {words}"))
  stages = "  ".join(f"{k} {v:.2f} ms" for k, v in answer.stages_ms.items())
  out.print(
    f"{stages}  over {len(source)} visuals (the first answer, with compiling, "
    f"took {first:.1f} s)"
  )
  out.print(markup.escape(source.attribution), style="dim")


def _moved(places: int) -> str:
  """Places that re-ranking moved an answer, by Fast's list."""
  return (
    "=" if not places else f"{'up' if places > 0 else 'down'} {abs(places)}"
  )


def _draw(query, answer, source) -> None:
  lists = [("Fast", answer.fast)]
  if "rerank" in answer.stages_ms:
    lists.append(("re-ranked", answer.final))
  shown = min(_K.value, sheet.COLUMNS)
  listed = [
    [int(r) for r in np.asarray(found.rows[0]) if r >= 0][:shown]
    for _, found in lists
  ]
  sheet.contact_sheet(
    _SHEET.value,
    query,
    [list(source.visuals(rows)) for rows in listed],
    [label for label, _ in lists],
    source.attribution,
    scores=[np.asarray(found.scores[0])[:shown].tolist() for _, found in lists],
  )
  print(f"drawn: {_SHEET.value}")


if __name__ == "__main__":
  cli.run(main, __doc__)
