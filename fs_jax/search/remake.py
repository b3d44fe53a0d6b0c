"""The command that makes a gallery which is missing or stale."""

from etils import epath

from fs_jax.machine import commands
from fs_jax.runs import layout, stages


def command(workdir: epath.PathLike, split: str) -> str:
  """Encodes and indexes a split for the best Fast of a workdir."""
  run = layout.stage(workdir, layout.serving(workdir) or "fast")
  slow = layout.stage(workdir, layout.SLOW)
  judge = [f"--slow={slow}"] if stages.finished(slow) else []
  encode = commands.command(
    "encode", f"--run={run}", *judge, f"--split={split}", "--replace"
  )
  where = layout.gallery(workdir, split).folder
  build = commands.command(
    "export_index", f"--gallery={where}", f"--run={run}", "--replace"
  )
  return f"{encode} && {build}"
