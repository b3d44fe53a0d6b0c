"""Encodes a gallery: Fast's vectors, and Slow's memories for re-ranking.

  python -m launch.encode --run=runs/x/distill --slow=runs/x/slow \\
      --split=test --out=runs/x/gallery

Writes OUT/corpus (vectors and ids) and, with --slow, OUT/store (what Slow keeps
of every visual). A folder that is there and belongs to the same parameters and
gallery is left as it is; any other is refused, or made anew with --replace.
"""

from typing import Any

from absl import flags
from etils import epath

from fs_jax.data import sources
from fs_jax.gallery import encode
from fs_jax.runs import stages
from launch import cli

_RUN = flags.DEFINE_string("run", None, "folder of a trained fast or distill")
_SLOW = flags.DEFINE_string("slow", "", "folder of a trained slow")
_SPLIT = flags.DEFINE_string("split", "test", "split that is the gallery")
_OUT = flags.DEFINE_string("out", None, "folder to write corpus and store in")
_REPLACE = flags.DEFINE_bool(
  "replace", False, "make anew what is there of other models or visuals"
)


def main(_) -> None:
  cli.need("run", "out")
  run = stages.load(_RUN.value)
  source = sources.open_split(run.cfg.data, _SPLIT.value)
  slow = stages.load(_SLOW.value) if _SLOW.value else None
  out = epath.Path(_OUT.value)
  again: dict[str, Any] = {
    "stale": "replace" if _REPLACE.value else "refuse",
    "mend": f"make it anew: {_command()} --replace",
  }
  made = encode.write_corpus(run, source, out / "corpus", **again)
  print(f"{out / 'corpus'}: {len(made.ids)} vectors of {made.vectors.shape[1]}")
  if slow is not None:
    kept = encode.write_store(slow, source, out / "store", **again)
    print(f"{out / 'store'}: {len(kept)} items of {kept.bytes_per_item} bytes")
  cli.then(
    f"python -m launch.export_index --corpus={out / 'corpus'} "
    f"--out={out / 'index'} --run={_RUN.value}" + " --replace" * _REPLACE.value
  )


def _command() -> str:
  """What was typed, for who has to type it again."""
  slow = f"--slow={_SLOW.value} " if _SLOW.value else ""
  return (
    f"python -m launch.encode --run={_RUN.value} {slow}"
    f"--split={_SPLIT.value} --out={_OUT.value}"
  )


if __name__ == "__main__":
  cli.run(main, __doc__)
