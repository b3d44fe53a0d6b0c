"""The command that makes a gallery which is missing or stale."""

from etils import epath

from fs_jax.machine import commands
from fs_jax.runs import layout, stages


def command(workdir: epath.PathLike, split: str) -> str:
  """The command that encodes and indexes a split for a workdir's best Fast.

  It encodes memories too if Slow is trained.
  """
  run = layout.stage(workdir, layout.best_fast(workdir) or "fast")
  slow = layout.stage(workdir, layout.SLOW)
  judge = [f"--slow={slow}"] if stages.is_finished(slow) else []
  encode = commands.command(
    "encode", f"--run={run}", *judge, f"--split={split}", "--replace"
  )
  folder = layout.gallery(workdir, split).folder
  build = commands.command(
    "export_index", f"--gallery={folder}", f"--run={run}", "--replace"
  )
  return f"{encode} && {build}"
