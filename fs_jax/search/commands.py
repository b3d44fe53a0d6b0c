"""What a person types to make a gallery that is missing or stale."""

import shlex

from etils import epath

from fs_jax.runs import layout, stages


def make_gallery(workdir: epath.PathLike, split: str) -> str:
  """Encodes and indexes a split for the best Fast of a workdir."""
  name = layout.serving(workdir) or "fast"
  run = layout.stage(workdir, name)
  slow = layout.stage(workdir, layout.SLOW)
  encode = ["python", "-m", "launch.encode", f"--run={run}"]
  if stages.finished(slow):
    encode.append(f"--slow={slow}")
  encode += [f"--split={split}", "--replace"]
  where = layout.gallery(workdir, split).folder
  build = ["python", "-m", "launch.export_index", f"--gallery={where}"]
  build += [f"--run={run}", "--replace"]
  return f"{shlex.join(encode)} && {shlex.join(build)}"
