"""A trained workdir, found and opened to be searched.

What belongs together is compared before it is used; a gallery of other models
or visuals is refused with the command that makes it anew.
"""

from typing import NamedTuple

from etils import epath

from fs_jax.data import sources
from fs_jax.gallery import encode, exact, index
from fs_jax.gallery import memories as memory_store
from fs_jax.runs import stages
from fs_jax.search import fusion, scorer, searcher


class Found(NamedTuple):
  """Where the parts of a searchable gallery lie, and what makes them anew."""

  fast: epath.Path
  slow: epath.Path
  fit: epath.Path  # folder that holds fit.json
  index: epath.Path
  store: epath.Path
  remake: str  # a command, for a gallery of other models or visuals


def find_gallery(workdir: epath.Path, split: str) -> Found:
  """The best Fast that has an index of the split, with what re-ranks it.

  A study keeps gallery/<split>/<stage>/index, the programs one by one
  gallery/index.

  Raises:
    ValueError: no trained Fast, or no index; the message says what to run.
  """
  names = [n for n in ("distill", "fast") if stages.finished(workdir / n)]
  if not names:
    raise ValueError(
      f"{workdir}: must hold a trained fast or distill; got neither. run make "
      "quickstart, or python -m launch.train"
    )
  shared = workdir / "gallery" / split
  for name in names:
    slow = workdir / "slow"
    fit = workdir / name if name == "distill" else slow
    if (shared / name / "index").exists():
      again = f"python -m launch.evaluate --workdir={workdir} --split={split}"
      return Found(
        *(workdir / name, slow, fit, shared / name / "index"),
        *(shared / "store", again),
      )
    if (workdir / "gallery" / "index").exists():
      return Found(
        *(workdir / name, slow, fit, workdir / "gallery" / "index"),
        *(workdir / "gallery" / "store", encode_command(workdir, name, split)),
      )
  raise ValueError(
    f"{workdir}: must hold an index of split {split!r}; got none. make it: "
    f"{encode_command(workdir, names[0], split)}"
  )


def encode_command(workdir: epath.Path, name: str, split: str) -> str:
  """What encodes and indexes a split for one of a workdir's Fasts."""
  out, run = workdir / "gallery", workdir / name
  slow = (
    f"--slow={workdir / 'slow'} " if stages.finished(workdir / "slow") else ""
  )
  return (
    f"python -m launch.encode --run={run} {slow}--split={split} --out={out} "
    f"--replace && python -m launch.export_index --corpus={out / 'corpus'} "
    f"--out={out / 'index'} --run={run} --replace"
  )


class Opened(NamedTuple):
  """A gallery with all that answers questions about it."""

  found: Found
  source: sources.Source  # its visuals, decoded as they are asked for
  fast: stages.Run
  searched: exact.Index
  slow: stages.Run | None  # this and what follows: None where Fast is alone
  memories: memory_store.Store | None
  fit: fusion.Fit | None

  def scorer(self) -> scorer.Scorer | None:
    """Slow over the gallery."""
    if self.slow is None or self.memories is None:
      return None
    return scorer.Scorer(self.slow, self.memories)

  def retriever(self) -> searcher.Retriever:
    """What answers questions."""
    return searcher.Retriever(self.fast, self.searched, self.scorer(), self.fit)


def open_to_search(
  found: Found, fast: stages.Run, split: str, slow: bool
) -> Opened:
  """Opens what was found, each part compared with the stages.

  Args:
    found: by `find_gallery`.
    fast: its Fast, which may refuse a question before more is loaded.
    split: that was found.
    slow: whether Slow re-ranks.

  Raises:
    ValueError: a part that is missing, damaged, or of other models or visuals,
      with the command that makes it anew.
  """
  source = sources.open_lazily(fast.cfg.data, split)
  made_from = encode.contracts_of(fast, source)
  mend = f"make it anew: {found.remake}"
  searched = index.load(found.index, made_from, mend=mend)
  if not slow:
    return Opened(found, source, fast, searched, None, None, None)
  judge = stages.load(found.slow)
  memories = memory_store.Store(
    found.store,
    {**judge.contract, "split": made_from["split"]},
    ids=searched.ids,
    hashes=False,
    mend=mend,
  )
  fit = fusion.load(found.fit, {**fast.contract, **judge.contract})
  return Opened(found, source, fast, searched, judge, memories, fit)
