"""Encodes a split for search: vectors of Fast, memories of Slow, items to show.

  python -m launch.encode --run=runs/x/distill --slow=runs/x/slow --split=test

Writes the folders vectors, items and, with --slow, memories into the gallery of
the split, gallery/<split> beside the stage unless --out says another place. A
folder that is there and belongs to the same parameters and visuals is left as
it is; any other is refused, or made anew with --replace.

  python -m launch.encode --run=runs/x/distill --slow=runs/x/slow --pack=G

also builds the index, if it is missing, and writes a packed gallery: all that a
search needs, small pictures included, and no training data. It may be copied
anywhere and searched with --workdir=G.
"""

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
_SPLIT = flags.DEFINE_string("split", "test", "split that is the gallery")
_OUT = flags.DEFINE_string("out", "", "folder of the gallery")
_PACK = flags.DEFINE_string("pack", "", "folder of a packed gallery to write")
_REPLACE = flags.DEFINE_bool(
  "replace", False, "make anew what is there of other models or visuals"
)


def main(_) -> None:
  cli.need("run")
  run = stages.load(_RUN.value)
  source = sources.open_split(run.cfg.data, _SPLIT.value)
  slow = stages.load(_SLOW.value) if _SLOW.value else None
  where = layout.gallery(run.folder.parent, _SPLIT.value)
  if _OUT.value:
    where = layout.Gallery(epath.Path(_OUT.value))
  again: dict[str, Any] = {
    "stale": "replace" if _REPLACE.value else "refuse",
    "mend": f"make it anew: {_command()} --replace",
  }
  made = encode.write_vectors(run, source, where.vectors, **again)
  print(f"{where.vectors}: {len(made.ids)} vectors of {made.vectors.shape[1]}")
  encode.write_items(source, where.items)
  if slow is not None:
    kept = encode.write_memories(slow, source, where.memories, **again)
    print(f"{where.memories}: {len(kept)} items of {kept.bytes_per_item} bytes")
  if not _PACK.value:
    build = [f"--gallery={where.folder}", f"--run={_RUN.value}"]
    build += ["--replace"] * _REPLACE.value
    cli.then(commands.command("export_index", *build))
    return
  parts = encode.make_contract(run, source)
  if provenance.folder_needed(where.index, "index", parts, **again):
    index.build(made, where.index, parts, queries=encode.sample_queries(run))
  packed.write(_PACK.value, where, source, run, slow)
  print(f"{_PACK.value}: {len(source)} visuals, packed")
  cli.then(
    commands.command(
      "search",
      "a fox left of a car",
      f"--workdir={_PACK.value}",
      *(["--rerank=0"] if slow is None else []),
    )
  )


def _command() -> str:
  """What was typed, for who has to type it again."""
  words = [f"--run={_RUN.value}"]
  words += [f"--slow={_SLOW.value}"] * bool(_SLOW.value)
  words.append(f"--split={_SPLIT.value}")
  words += [f"--out={_OUT.value}"] * bool(_OUT.value)
  words += [f"--pack={_PACK.value}"] * bool(_PACK.value)
  return commands.command("encode", *words)


if __name__ == "__main__":
  cli.run(main, __doc__)
