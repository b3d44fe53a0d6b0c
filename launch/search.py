"""Searches a gallery in words: Fast finds candidates, Slow puts them in order.

  python -m launch.search "a big fox left of a car" --workdir=runs/quickstart

Prints the answers with the time of each stage, and draws them (--sheet). The
workdir has the stages (fast or distill, slow) and a gallery: what
`make quickstart` leaves, or train, encode and export_index one by one. A packed
gallery, which `launch.encode --pack` wrote, is searched in the same way.
"""

import time

from absl import flags
from rich import console as rich_console
from rich import markup
from rich import table as rich_table

from fs_jax.evaluate.page import sheet
from fs_jax.machine import compile_cache
from fs_jax.search import searcher
from launch import cli

_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/quickstart", "trained stages, or a packed gallery"
)
_SPLIT = flags.DEFINE_string(
  "split", None, "the gallery of a workdir: test, unless given"
)
_K = flags.DEFINE_integer("k", 10, "answers", lower_bound=1)
_RERANK = flags.DEFINE_integer(
  "rerank",
  searcher.DEFAULT_RERANK,
  "candidates that Slow looks at; 0 = Fast alone",
  lower_bound=0,
)
_SHEET = flags.DEFINE_string("sheet", "search.png", 'picture; "" = none')


def main(argv) -> None:
  query = cli.only(argv, 'say what to look for: search "a fox left of a car"')
  compile_cache.enable()
  search = searcher.open(_WORKDIR.value, _SPLIT.value, slow=_RERANK.value > 0)
  if warning := search.index.manifest.get("warning"):
    print(f"warning: {_WORKDIR.value}: {warning}")
  began = time.perf_counter()
  search(query, k=_K.value, rerank=_RERANK.value)  # compiles
  first = time.perf_counter() - began
  answer = search(query, k=_K.value, rerank=_RERANK.value)
  _print(search, answer, first)
  weights = search.judge and search.judge.weights
  if weights and weights.k != _RERANK.value:
    print(
      f"the weights of both were fitted on {weights.k} candidates; Slow looked "
      f"at {_RERANK.value} here"
    )
  if _SHEET.value:
    _draw(search, answer)


def _print(
  search: searcher.Searcher, answer: searcher.Answer, first: float
) -> None:
  reranked = "rerank" in answer.stages_ms
  shown = rich_table.Table(title=markup.escape(answer.query))
  for name in ("rank", "Fast", *(("both", "moved") if reranked else ()), "id"):
    shown.add_column(name, justify="right", no_wrap=True)
  shown.add_column("a caption of it")
  for rank, hit in enumerate(answer.hits, 1):
    cells = [f"{hit.fast:.3f}"]
    if reranked:
      both = "-" if hit.score is None else f"{hit.score:.3f}"
      cells += [both, _moved(hit.moved)]
    named = map(markup.escape, (hit.id, hit.item.caption))
    shown.add_row(str(rank), *cells, *named)
  out = rich_console.Console(highlight=False)
  out.print(shown)
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
  """Places that re-ranking moved an answer, by Fast's list."""
  return (
    "=" if not places else f"{'up' if places > 0 else 'down'} {abs(places)}"
  )


def _draw(search: searcher.Searcher, answer: searcher.Answer) -> None:
  most = min(_K.value, sheet.COLUMNS)
  lists = [("Fast", answer.fast_rows[:most], answer.fast_scores[:most])]
  if "rerank" in answer.stages_ms:
    best = answer.hits[:most]
    scores = [h.fast if h.score is None else h.score for h in best]
    lists.append(("re-ranked", tuple(h.row for h in best), tuple(scores)))
  sheet.contact_sheet(
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
