"""The layout of a workdir: no other module spells these names.

    W/<stage>/           config.json tokenizer.json contract.json fit.json DONE
                         checkpoints/<step>/ metrics.jsonl tb/ profile/
    W/gallery/<split>/   items/ vectors/ memories/ index/
                         <stage>/{vectors,index}/ of a Fast that is compared
                         queries-<n>/ report-<n>.json of an evaluation
    W/                   parts/ answers/ study.json report.json index.html data/

A packed gallery is a gallery's folder with fast/, slow/ and fit.json in it.
"""

from typing import NamedTuple

from etils import epath

# In the folder of a stage.
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
CONTRACT = "contract.json"  # contracts of the stages that it began from
PART = "part.json"  # if the folder holds only some of the parameters
PARAMETERS = "parameters.txt"
CARD = "MODEL_CARD.md"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
BOARD = "tb"
TRACE = "profile"
WEIGHTS = "fit.json"
DONE = "DONE"
CLUSTERS = "clusters"  # visuals that Fast confuses
JUDGED = "judged"  # the teacher's scores of them
JUDGED_MEMORIES = "memories"
VALIDATION = "validation"  # the memories that weights are fitted on

# In a workdir, and in the folder of a study.
DATA = "data"
PARTS = "parts"
ANSWERS = "answers"
STUDY = "study.json"
REPORT = "report.json"
PAGE = "index.html"

FASTS = ("distill", "fast")  # the better one first
SLOW = "slow"


class Gallery(NamedTuple):
  """The folders that store a gallery."""

  folder: epath.Path

  @property
  def items(self) -> epath.Path:
    return self.folder / "items"

  @property
  def vectors(self) -> epath.Path:
    return self.folder / "vectors"

  @property
  def memories(self) -> epath.Path:
    return self.folder / "memories"

  @property
  def index(self) -> epath.Path:
    return self.folder / "index"


def stage(workdir: epath.PathLike, name: str) -> epath.Path:
  """The folder of a stage."""
  return epath.Path(workdir) / name


def gallery(workdir: epath.PathLike, split: str) -> Gallery:
  """The folders of a split's gallery, as searched."""
  return Gallery(epath.Path(workdir) / "gallery" / split)


def best_fast(workdir: epath.PathLike) -> str | None:
  """The best Fast that is trained, whose vectors the gallery holds, or None."""
  done = (n for n in FASTS if (stage(workdir, n) / DONE).exists())
  return next(done, None)


def fast_gallery(workdir: epath.PathLike, split: str, fast: str) -> Gallery:
  """The folders of the vectors and the index of a Fast that a study compares.

  The best Fast uses the gallery's own folders, any other Fast a folder below.
  """
  own = gallery(workdir, split)
  return own if fast == best_fast(workdir) else Gallery(own.folder / fast)


def queries(workdir: epath.PathLike, split: str, count: int) -> epath.Path:
  """The folder that stores the evaluation of `count` queries of a split."""
  return gallery(workdir, split).folder / f"queries-{count}"


def report(workdir: epath.PathLike, split: str, count: int) -> epath.Path:
  """The file of the report on `count` queries of a split."""
  return gallery(workdir, split).folder / f"report-{count}.json"
