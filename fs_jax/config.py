"""The schema of a run: frozen dataclasses, one comment a field.

Defaults live here and nowhere else. Rules between fields are checked when a
config is built, so a wrong one never reaches a device. Recipes are in
`configs/`; `configdict.py` makes them editable from the command line.
"""

import dataclasses
from typing import Literal

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]


def _require(ok: bool, message: str) -> None:
  """`message`: "field: the rule; got value. what to change"."""
  if not ok:
    raise ValueError(message)


def _at_least(
  section: object, least: int, *fields: str, mend: str = ""
) -> None:
  mend = mend or f"use {least} or more"
  for field in fields:
    value = getattr(section, field)
    rule = f"must be at least {least}"
    _require(value >= least, f"{field}: {rule}; got {value!r}. {mend}")


def _below_one(section: object, field: str, mend: str) -> None:
  value = getattr(section, field)
  rule = "must be in [0, 1)"
  _require(0 <= value < 1, f"{field}: {rule}; got {value!r}. {mend}")


def _divides(section: object, field: str, whole: str) -> None:
  part, total = getattr(section, field), getattr(section, whole)
  if part < 1 or total % part:
    below = next(n for n in range(max(part, 1), 0, -1) if total % n == 0)
    raise ValueError(
      f"{field}: must divide {whole} {total}; got {part!r}. use {below}, or "
      f"change {whole}"
    )


@dataclasses.dataclass(frozen=True)
class Data:
  """Where examples come from and what is done to them before the device."""

  dataset: Literal[
    "scenes", "emoji", "folder", "coco", "flickr30k", "vatex", "cc12m"
  ] = "scenes"
  dir: str = "data"  # where datasets are prepared; the root of a `folder`
  seed: int = 0  # a generated dataset: another seed, other pictures
  sizes: tuple[tuple[str, int], ...] = ()  # fields of its builder, if changed
  train: str = "train"  # split with captions
  uncaptioned: str = ""  # split that only the teacher sees; "" = none
  validation: str = "validation"  # the only split that chooses anything
  image_size: int = 64  # H = W, pixels
  frames: int = 1  # T; 1 = images
  resize: Literal["squash", "crop"] = "squash"  # crop = centre square first
  augment: Literal["none", "shift", "crop"] = "none"  # crop = random resized
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # pixels are in [0, 1]
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  captions_per_visual: int = 1  # M, drawn without replacement where possible
  cache: Literal["none", "ram"] = "none"  # ram = decoded once, kept as uint8
  threads: int = 2  # threads that decode

  def __post_init__(self) -> None:
    _at_least(self, 1, "image_size", "frames", "captions_per_visual", "threads")
    _require(
      min(self.std) > 0,
      f"std: must be positive; got {self.std!r}. use (1.0, 1.0, 1.0) to leave "
      "the scale of pixels alone",
    )


@dataclasses.dataclass(frozen=True)
class Tokens:
  """How a string becomes integers; part of every contract."""

  kind: Literal["word", "phrase", "wordpiece", "bpe"] = "word"
  phrases: int = 24  # repeated word sequences that kind phrase makes one token
  vocabulary: int = 8192  # at most; includes pad, unknown, BOS, EOS
  length: int = 24  # L, BOS and EOS included; longer strings are cut
  lowercase: bool = True  # with accents kept; Unicode NFC always
  file: str = ""  # a tokenizer.json to use instead of training one

  def __post_init__(self) -> None:
    _at_least(self, 3, "length")
    _at_least(self, 8, "vocabulary")


@dataclasses.dataclass(frozen=True)
class Stack:
  """A stack of transformer blocks."""

  width: int  # D
  layers: int
  heads: int
  hidden: int  # width of the feed-forward part
  dropout: float = 0.0
  remat: Literal["none", "dots", "full"] = "none"  # what backward recomputes

  def __post_init__(self) -> None:
    _at_least(self, 1, "width", "layers")
    _divides(self, "heads", "width")
    _below_one(self, "dropout", mend="use 0.1, or 0 for none")


@dataclasses.dataclass(frozen=True)
class Vision:
  """A ViT over the frames of a visual."""

  stack: Stack
  patch: int  # p; the token grid is image_size / p on each side
  pool: Literal["map", "mean", "class"] = "map"  # map = attention pooling
  stem: int = 0  # channels of a convolution over quarter patches; 0: none

  def __post_init__(self) -> None:
    _at_least(self, 1, "patch")
    _at_least(self, 0, "stem", mend="0 leaves the convolution out")
    _require(
      not self.stem or self.patch % 4 == 0,
      f"stem: needs a patch that is a multiple of 4, has {self.patch}; got "
      f"{self.stem}. set stem=0, or a patch such as 16",
    )


@dataclasses.dataclass(frozen=True)
class Text:
  """A text transformer, reading both ways."""

  stack: Stack
  pool: Literal["map", "mean", "class"] = "mean"  # class = the BOS token


@dataclasses.dataclass(frozen=True)
class Fast:
  """Dual encoder: one vector a visual, one a text."""

  vision: Vision
  text: Text
  embed: int = 512  # E
  loss: Literal["softmax", "sigmoid"] = "softmax"
  # s at the start: inverse temperature, learned in log; 0 = the loss's own
  scale: float = 0.0
  bias: float = -10.0  # b at the start, sigmoid only
  # Texts that the loss compares at a time, in a ring over the mesh: the table
  # of all pairs is never made. 0 makes it, which is faster where it fits.
  chunk: int = 0

  def __post_init__(self) -> None:
    _at_least(self, 0, "chunk", mend="0 compares all texts at once")
    _at_least(self, 0, "scale", mend="0 takes the loss's own")

  @property
  def first_scale(self) -> float:
    """s at the start: as given, or 14 of softmax and 10 of sigmoid."""
    return self.scale or {"softmax": 14.0, "sigmoid": 10.0}[self.loss]


@dataclasses.dataclass(frozen=True)
class Slow:
  """A captioner as judge: its decoder cross-attends to ever finer tokens."""

  vision: Vision
  decoder: Stack  # its `layers` cross-attend; all levels together
  text_layers: int = 1  # before those, without vision: run once a query
  levels: int = 1  # 1 = a plain decoder over the ViT's tokens
  widths: tuple[int, ...] = ()  # channels of levels 1, 2, ...; may be longer
  stem: int = 128  # hidden channels of the convolution that sees the pixels
  d_mem: int = 64  # width of what is stored per visual token
  separate_directions: bool = False  # two decoders instead of one for both
  finer_frames: int = 1  # levels > 0 keep every n-th frame
  null_rate: float = 0.1  # share of training rows that see no picture
  loss: Literal["captioning", "matching"] = "captioning"

  def __post_init__(self) -> None:
    _at_least(self, 1, "levels")
    _at_least(self, 1, "finer_frames", mend="1 keeps every frame")
    _at_least(self, 0, "text_layers")
    _below_one(self, "null_rate", mend="use 0.1, or 0 to hide no picture")
    levels, layers = self.levels, self.decoder.layers
    _require(
      levels <= 1 + len(self.widths),
      f"levels: needs a width for each level above 0, has {self.widths}; got "
      f"{levels}. use {1 + len(self.widths)}, or add to widths",
    )
    _require(
      layers >= levels,
      f"decoder.layers: each of {levels} levels needs a layer; got {layers}. "
      f"use {levels} layers or more, or fewer levels",
    )
    _require(
      self.vision.patch % 2 ** (levels - 1) == 0,
      f"levels: each above 0 halves the patch of {self.vision.patch} pixels; "
      f"got {levels}. use fewer levels, or a patch that is a multiple of "
      f"{2 ** (levels - 1)}",
    )

  @property
  def groups(self) -> tuple[int, ...]:
    """Crossed layers of each level, coarse to fine; finer ones get the rest."""
    each, rest = divmod(self.decoder.layers, self.levels)
    return tuple(each + (i >= self.levels - rest) for i in range(self.levels))

  def grids(
    self, image_size: int, frames: int
  ) -> tuple[tuple[int, int, int], ...]:
    """(frames, rows, columns) of each level's tokens, coarse to fine."""
    finer = -(-frames // self.finer_frames)
    side = image_size // self.vision.patch
    return tuple(
      (finer if k else frames, side << k, side << k) for k in range(self.levels)
    )


@dataclasses.dataclass(frozen=True)
class Distill:
  """Slow teaches Fast: cross-entropy over candidate lists."""

  alpha: float = 1.0  # weight of the teacher's loss
  clusters: int = 8  # per step; visuals and captions that are judged whole
  cluster_size: int = 16
  candidates: Literal["top_k", "batch"] = "top_k"  # top_k = Fast's neighbours
  lists: int = 4096  # clusters mined before training starts
  # Online, Slow judges what each step brings. Offline it judges every list once
  # before: a step then costs what Fast costs, and lists are seen again.
  teacher: Literal["online", "offline"] = "online"
  temperature: float = 0.0  # tau over the teacher's scores; 0 = as fitted

  def __post_init__(self) -> None:
    _at_least(self, 1, "clusters", "cluster_size", "lists")
    _at_least(self, 0, "temperature", mend="0 takes the fitted one")


@dataclasses.dataclass(frozen=True)
class Weights:
  """The fit, on validation, of how Slow and Fast weigh when both rank."""

  # Fast's best per validation query. 100, at five times the cost, ranked no
  # better on validation of scenes (seeds 101 and 102, fitted on half of the
  # pictures, judged on the other): R@1 moved by -0.2 to +0.2 points, re-ranking
  # 5 to 50 of Fast and of the distilled Fast; every 95 % interval holds 0.
  candidates: int = 20

  def __post_init__(self) -> None:
    _at_least(self, 2, "candidates", mend="use 2 or more, to tell them apart")


@dataclasses.dataclass(frozen=True)
class Optim:
  """Optax: the optimiser, warm-up, then the schedule."""

  # muon: for matrices; AdamW for the rest
  name: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
  learning_rate: float = 1e-3
  # rsqrt: peak * sqrt(warmup / step); wsd: constant, then linear to 0
  schedule: Literal["cosine", "constant", "rsqrt", "wsd"] = "cosine"
  warmup: int = 100  # steps
  # rsqrt, wsd: share of the steps after warm-up that end in a line to 0
  cooldown: float = 0.2
  weight_decay: float = 0.05
  decay: tuple[str, ...] = (".*/kernel", ".*/embedding")  # decayed parameters
  freeze: tuple[str, ...] = ()  # parameters that keep their first value
  clip: float = 1.0  # global gradient norm; 0 = never
  b1: float = 0.9
  b2: float = 0.98
  # Decay of a running mean of the parameters, which later programs then read
  # instead of them; 0 = none.
  ema: float = 0.0

  def __post_init__(self) -> None:
    _below_one(self, "ema", mend="use 0.999, or 0 for none")
    _require(
      0 <= self.cooldown <= 1,
      f"cooldown: is a share of the steps, 0 to 1; got {self.cooldown!r}. use "
      "0.2, or 0 for none",
    )
    _require(
      self.schedule != "rsqrt" or self.warmup >= 1,
      "warmup: schedule 'rsqrt' falls from the end of its warm-up, at least 1 "
      f"step; got {self.warmup}. use 1 or more, such as 100",
    )


@dataclasses.dataclass(frozen=True)
class Init:
  """Where a stage starts from: other stages of the same workdir."""

  stage: str = ""  # "fast": read its last checkpoint; "" = fresh
  prefixes: tuple[tuple[str, str], ...] = ()  # (theirs, ours) to copy
  teacher: str = ""  # stage whose parameters are frozen into the loss


@dataclasses.dataclass(frozen=True)
class Train:
  """The loop."""

  steps: int = 1000
  batch_size: int = 256  # global; visuals, not captions
  # Parts of a batch that are on the device one after the other. The gradient is
  # the whole batch's, of contrastive losses too, for another forward pass.
  accumulate: int = 1
  log_every: int = 50  # steps
  save_every: int = 500
  keep: int = 2  # newest checkpoints
  keep_every: int = 0  # and the one of every n-th step; 0 = none
  keep_best: int = 0  # and the best on validation, which programs then read
  eval_every: int = 0  # quick recall on a fixed validation sample; 0 = never
  eval_sample: int = 256  # visuals in that sample
  profile: tuple[int, ...] = ()  # (first, last) step to trace into profile/

  def __post_init__(self) -> None:
    _at_least(self, 1, "steps", "batch_size", "accumulate")
    _at_least(self, 1, "log_every", "save_every", "keep")
    _divides(self, "accumulate", "batch_size")
    _require(
      not self.keep_best
      or (self.eval_every > 0 and self.save_every % self.eval_every == 0),
      "keep_best: needs a validation at every save: eval_every must divide "
      f"save_every {self.save_every}; got {self.eval_every}. set "
      f"eval_every={self.save_every}, or keep_best=0",
    )
    _require(
      len(self.profile) in (0, 2),
      f"profile: is a first and a last step, or (); got {self.profile!r}. give "
      "two numbers, such as (10, 12)",
    )


ROWS = ("data", "fsdp")  # mesh axes that split the rows of a batch

# The axis of each dimension of a parameter; the first match wins. A scanned
# stack has its layers in front. Placement lives here, not in the models.
_STACKED = r".*/(blocks|level\d)/.*"
RULES: Rules = (
  (_STACKED + "/(query|key|value)/kernel", (None, "fsdp", "model", None)),
  (_STACKED + "/out/kernel", (None, "model", None, "fsdp")),
  (_STACKED + "/up/kernel", (None, "fsdp", "model")),
  (_STACKED + "/down/kernel", (None, "model", "fsdp")),
  (".*", ()),
)


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Sizes of the device mesh's axes; one may be -1: what is left."""

  data: int = -1  # includes the slices
  fsdp: int = 1
  model: int = 1
  slices: int = 1  # joined by a slow network; only the axis data crosses it
  topology: str = ""  # what each slice is meant to be, such as "v5e:16x16"
  rules: Rules = RULES

  def __post_init__(self) -> None:
    _at_least(self, 1, "slices")
    sizes = (self.data, self.fsdp, self.model)
    _require(
      all(s == -1 or s >= 1 for s in sizes) and sizes.count(-1) <= 1,
      "data, fsdp, model: axes are >= 1, one of them may be -1; got "
      f"{sizes!r}. use data=-1, fsdp=1, model=1 if in doubt",
    )


@dataclasses.dataclass(frozen=True)
class Config:
  """One stage of one run."""

  stage: Literal["fast", "slow", "distill"]
  fast: Fast
  slow: Slow | None = None  # unused by stage fast
  name: str = ""  # folder under the workdir; "" = the stage's name
  seed: int = 0
  compute: Literal["float32", "bfloat16"] = "float32"  # losses stay float32
  data: Data = dataclasses.field(default_factory=Data)
  tokens: Tokens = dataclasses.field(default_factory=Tokens)
  distill: Distill = dataclasses.field(default_factory=Distill)
  weights: Weights = dataclasses.field(default_factory=Weights)
  optim: Optim = dataclasses.field(default_factory=Optim)
  init: Init = dataclasses.field(default_factory=Init)
  train: Train = dataclasses.field(default_factory=Train)
  mesh: Mesh = dataclasses.field(default_factory=Mesh)

  def __post_init__(self) -> None:
    _require(
      self.stage == "fast" or self.slow is not None,
      f"slow: stage {self.stage!r} needs a Slow model; got None. set "
      "config.slow to a config.Slow",
    )
    size = self.data.image_size
    for name, model in (("fast", self.fast), ("slow", self.slow)):
      patch = model.vision.patch if model is not None else 1
      _require(
        size % patch == 0,
        f"data.image_size: must be a multiple of {name}.vision.patch {patch}; "
        f"got {size}. use {-(-size // patch) * patch}, or another patch",
      )
    if self.stage == "distill":
      _require(
        bool(self.init.teacher),
        "init.teacher: stage 'distill' needs a teacher; got ''. name the stage "
        "that trained Slow, such as 'slow'",
      )
      _require(
        self.distill.candidates != "top_k" or bool(self.init.stage),
        "init.stage: candidates 'top_k' are those of a trained Fast; got ''. "
        "name the stage that trained it, such as 'fast'",
      )
    matching = self.slow is not None and self.slow.loss == "matching"
    if self.stage == "slow" and matching:
      _require(
        bool(self.init.teacher),
        "init.teacher: slow.loss 'matching' needs a Fast that finds hard "
        "negatives; got ''. name the stage that trained it, such as 'fast'",
      )

  @property
  def folder(self) -> str:
    """The stage's folder under the workdir."""
    return self.name or self.stage
