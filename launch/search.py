"""Searches a gallery with a text query: Fast finds candidates, Slow ranks them.

  python -m launch.search "a big fox left of a car" --workdir=runs/quickstart

Prints the answers with the time of each stage, and draws them (--sheet). The
workdir holds the stages (fast or distill, slow) and a gallery, as written by
`make quickstart` or by train, encode and export_index one by one. It may also
be a packed gallery, which `launch.encode --pack` writes.
"""

import time
from collections.abc import Sequence

from absl import flags
from rich import console as rich_console
from rich import markup
from rich import table as rich_table

from fs_jax.evaluate.page import sheet
from fs_jax.machine import compile_cache
from fs_jax.search import searcher
from launch import cli

_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/quickstart", "folder of the stages, or a packed gallery"
)
_SPLIT = flags.DEFINE_string(
  "split", None, "split whose gallery is searched (default: test)"
)
_K = flags.DEFINE_integer("k", 10, "number of answers", lower_bound=1)
_RERANK = flags.DEFINE_integer(
  "rerank",
  searcher.DEFAULT_RERANK,
  "candidates that Slow re-ranks; 0 = Fast alone",
  lower_bound=0,
)
_SHEET = flags.DEFINE_string(
  "sheet", "search.png", "PNG file to draw the answers on; empty: none"
)


def main(argv: Sequence[str]) -> None:
  query = cli.take_argument(argv, 'give a query: search "a fox left of a car"')
  compile_cache.enable()
  search = searcher.open(_WORKDIR.value, _SPLIT.value, slow=_RERANK.value > 0)
  if warning := search.index.manifest.get("warning"):
    print(f"warning: {_WORKDIR.value}: {warning}")
  began = time.perf_counter()
  search(query, k=_K.value, rerank=_RERANK.value)  # compiles
  first = time.perf_counter() - began
  answer = search(query, k=_K.value, rerank=_RERANK.value)
  _print(search, answer, first)
  if search.judge is not None and search.judge.weights.k != _RERANK.value:
    print(
      f"the weights of both were fitted on {search.judge.weights.k} "
      f"candidates; Slow re-ranked {_RERANK.value} here"
    )
  if _SHEET.value:
    _draw(search, answer)


def _print(
  search: searcher.Searcher, answer: searcher.Answer, first: float
) -> None:
  reranked = "rerank" in answer.stages_ms
  table = rich_table.Table(title=markup.escape(answer.query))
  columns = ["rank", "Fast"]
  if reranked:
    columns += ["both", "moved"]
  for column in (*columns, "id"):
    table.add_column(column, justify="right", no_wrap=True)
  table.add_column("a caption of it")
  for rank, hit in enumerate(answer.hits, 1):
    cells = [str(rank), f"{hit.fast:.3f}"]
    if reranked:
      both = "-" if hit.score is None else f"{hit.score:.3f}"
      cells += [both, _moved(hit.moved)]
    cells += [markup.escape(hit.id), markup.escape(hit.item.caption)]
    table.add_row(*cells)
  out = rich_console.Console(highlight=False)
  out.print(table)
  if answer.unknown:
    words = ", ".join(answer.unknown)
    out.print(markup.escape(f"ignored, not in the vocabulary: {words}"))
  stages = "  ".join(f"{k} {v:.2f} ms" for k, v in answer.stages_ms.items())
  out.print(
    f"{stages}  over {len(search)} visuals (the first answer, with compiling, "
    f"took {first:.1f} s)"
  )
  out.print(markup.escape(search.items.attribution), style="dim")


def _moved(places: int) -> str:
  """How far re-ranking moved an answer from its place in Fast's list."""
  if not places:
    return "="
  return f"{'up' if places > 0 else 'down'} {abs(places)}"


def _draw(search: searcher.Searcher, answer: searcher.Answer) -> None:
  count = min(_K.value, sheet.COLUMNS)
  lists = [("Fast", answer.fast_rows[:count], answer.fast_scores[:count])]
  if "rerank" in answer.stages_ms:
    best = answer.hits[:count]
    scores = [h.fast if h.score is None else h.score for h in best]
    lists.append(("re-ranked", tuple(h.row for h in best), tuple(scores)))
  sheet.draw(
    _SHEET.value,
    answer.query,
    [search.pictures(rows) for _, rows, _ in lists],
    [label for label, _, _ in lists],
    search.items.attribution,
    scores=[scores for _, _, scores in lists],
  )
  print(f"drawn: {_SHEET.value}")


if __name__ == "__main__":
  cli.run(main, __doc__)
