"""Training as `launch.train` does it, that also writes what each step saw.

    RECORD=folder python -m tests.support.recorded \
        --config=tests/support/recipe.py:fast ...

Each process appends to folder/<its number>.jsonl one line a batch it made: the
step, the rows of the global batch, and the ids of their visuals and texts.
Without RECORD it is `launch.train` and nothing more.
"""

import json
import os
import pathlib
from unittest import mock

import jax

from fs_jax.data import pipeline
from launch import cli
from launch import train as program


def main(argv) -> None:
  if not os.environ.get("RECORD"):
    return program.main(argv)
  with mock.patch.object(pipeline, "train_batches", _recorded):
    program.main(argv)


def _recorded(*args, start, rows=None, make=pipeline.train_batches, **kwargs):
  if rows is None:  # looked at before the first step: trained on by nobody
    yield from make(*args, start=start, **kwargs)
    return
  path = pathlib.Path(os.environ["RECORD"]) / f"{jax.process_index()}.jsonl"
  path.parent.mkdir(parents=True, exist_ok=True)
  batches = make(*args, start=start, rows=rows, **kwargs)
  for step, batch in enumerate(batches, start + 1):
    of = {"": batch}
    if hasattr(batch, "clusters"):
      of = {"pairs/": batch.pairs, "clusters/": batch.clusters}
    line = {"step": step, "rows": [[r.start, r.stop] for r in rows]}
    for name, part in of.items():
      line[f"{name}visual"] = part.visual_id.tolist()
      line[f"{name}text"] = part.text_id.tolist()
    with open(path, "a") as file:
      file.write(json.dumps(line) + "\n")
    yield batch


if __name__ == "__main__":
  cli.run(main, __doc__)
