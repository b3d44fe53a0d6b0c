"""Encodes a split for search: Fast's vectors, Slow's memories, items to show.

  python -m launch.encode --run=runs/x/distill --slow=runs/x/slow --split=test

Writes the folders vectors, items and, with --slow, memories into the split's
gallery: gallery/<split> beside the stage, unless --out names another folder.
Keeps an existing folder that belongs to the same parameters and visuals;
refuses any other, or rebuilds it with --replace.

  python -m launch.encode --run=runs/x/distill --slow=runs/x/slow --pack=G

also builds the index, if it is missing, and writes a packed gallery: everything
that a search needs, small pictures included, and no training data. You can copy
it anywhere and search it with --workdir=G.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from fs_jax.data import sources
from fs_jax.gallery import encode, index
from fs_jax.machine import commands, provenance
from fs_jax.runs import layout, stages
from fs_jax.search import packed
from launch import cli

_RUN = flags.DEFINE_string("run", None, "folder of a trained fast or distill")
_SLOW = flags.DEFINE_string("slow", "", "folder of a trained slow")
_SPLIT = flags.DEFINE_string("split", "test", "split to encode as the gallery")
_OUT = flags.DEFINE_string("out", "", "folder of the gallery")
_PACK = flags.DEFINE_string("pack", "", "folder of a packed gallery to write")
_REPLACE = flags.DEFINE_bool(
  "replace", False, "rebuild what belongs to other models or visuals"
)


def main(_: Sequence[str]) -> None:
  cli.need("run")
  run = stages.load(_RUN.value)
  source = sources.open_split(run.cfg.data, _SPLIT.value)
  slow = stages.load(_SLOW.value) if _SLOW.value else None
  gallery = layout.gallery(run.folder.parent, _SPLIT.value)
  if _OUT.value:
    gallery = layout.Gallery(epath.Path(_OUT.value))
  if_stale: dict[str, Any] = {
    "stale": "replace" if _REPLACE.value else "refuse",
    "mend": f"make it anew: {_command()} --replace",
  }
  corpus = encode.write_vectors(run, source, gallery.vectors, **if_stale)
  count, width = corpus.vectors.shape
  print(f"{gallery.vectors}: {count} vectors of {width}")
  encode.write_items(source, gallery.items)
  if slow is not None:
    store = encode.write_memories(slow, source, gallery.memories, **if_stale)
    size = store.bytes_per_item
    print(f"{gallery.memories}: {len(store)} items of {size} bytes")
  if not _PACK.value:
    words = [f"--gallery={gallery.folder}", f"--run={_RUN.value}"]
    if _REPLACE.value:
      words.append("--replace")
    cli.print_next(commands.command("export_index", *words))
    return
  contract = encode.make_contract(run, source)
  if provenance.folder_needed(gallery.index, "index", contract, **if_stale):
    queries = encode.sample_queries(run)
    index.build(corpus, gallery.index, contract, queries=queries)
  packed.write(_PACK.value, gallery, source, run, slow)
  print(f"{_PACK.value}: {len(source)} visuals, packed")
  words = ["a fox left of a car", f"--workdir={_PACK.value}"]
  if slow is None:
    words.append("--rerank=0")
  cli.print_next(commands.command("search", *words))


def _command() -> str:
  """The command as it was typed, so that a message can repeat it."""
  words = cli.flag_words("run", "slow", "split", "out", "pack")
  return commands.command("encode", *words)


if __name__ == "__main__":
  cli.run(main, __doc__)
