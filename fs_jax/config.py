"""The schema of a run: frozen dataclasses, one comment a field.

Defaults live here and nowhere else. Rules between fields are checked when a
config is made, so a wrong one never reaches a device. Recipes are in
`configs/`; `configdict.py` makes them editable from the command line.
"""

import dataclasses
from typing import Literal

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]


def _require(ok: bool, field: str, rule: str, got: object, mend: str) -> None:
  if not ok:
    raise ValueError(f"{field}: {rule}; got {got!r}. {mend}")


@dataclasses.dataclass(frozen=True)
class Data:
  """Where examples come from and what is done to them before the device."""

  dataset: Literal[
    "scenes", "emoji", "folder", "coco", "flickr30k", "vatex", "cc12m"
  ] = "scenes"
  dir: str = "data"  # where datasets are prepared; of `folder`, its root
  seed: int = 0  # of a generated dataset: another seed, other pictures
  sizes: tuple[tuple[str, int], ...] = ()  # of generated splits, if not default
  train: str = "train"  # split with captions
  uncaptioned: str = ""  # split that only the teacher sees; "" = none
  validation: str = "validation"  # the only split that chooses anything
  image_size: int = 64  # H = W, pixels
  frames: int = 1  # T; 1 = images
  resize: Literal["squash", "crop"] = "squash"  # crop = centre square first
  augment: Literal["none", "shift", "crop"] = "none"  # crop = random resized
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of pixels in [0, 1]
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  captions_per_visual: int = 1  # M, drawn without replacement where possible
  cache: Literal["none", "ram"] = "none"  # ram = decoded once, kept as uint8
  threads: int = 2  # that decode

  def __post_init__(self):
    for field in ("image_size", "frames", "captions_per_visual", "threads"):
      value = getattr(self, field)
      _require(value >= 1, field, "must be at least 1", value, "raise it")
    _require(min(self.std) > 0, "std", "must be positive", self.std, "fix it")


@dataclasses.dataclass(frozen=True)
class Tokens:
  """How a string becomes integers; part of every contract."""

  kind: Literal["word", "phrase", "wordpiece", "bpe"] = "word"
  phrases: int = 24  # repeated word sequences that kind phrase makes one token
  vocabulary: int = 8192  # at most; includes pad, unknown, BOS, EOS
  length: int = 24  # L, BOS and EOS included; longer strings are cut
  lowercase: bool = True  # with accents kept; Unicode NFC always
  file: str = ""  # a tokenizer.json to use instead of training one

  def __post_init__(self):
    _require(
      self.length >= 3, "length", "must be >= 3", self.length, "raise it"
    )
    _require(
      self.vocabulary >= 8,
      "vocabulary",
      "must be >= 8",
      self.vocabulary,
      "raise it",
    )


@dataclasses.dataclass(frozen=True)
class Stack:
  """A stack of transformer blocks."""

  width: int  # D
  layers: int
  heads: int
  hidden: int  # width of the feed-forward part
  dropout: float = 0.0
  remat: Literal["none", "dots", "full"] = "none"  # what backward recomputes

  def __post_init__(self):
    _require(
      self.layers >= 1, "layers", "must be at least 1", self.layers, "raise it"
    )
    _require(
      self.heads >= 1 and self.width % self.heads == 0,
      "heads",
      f"must divide width {self.width}",
      self.heads,
      "change either",
    )
    _require(
      0 <= self.dropout < 1,
      "dropout",
      "must be in [0, 1)",
      self.dropout,
      "lower it",
    )


@dataclasses.dataclass(frozen=True)
class Vision:
  """A ViT over the frames of a visual."""

  stack: Stack
  patch: int  # p; the token grid is image_size / p on each side
  pool: Literal["map", "mean", "class"] = "map"  # map = attention pooling
  stem: int = 0  # channels of a convolution over quarter patches; 0: none

  def __post_init__(self):
    _require(
      self.patch >= 1, "patch", "must be at least 1", self.patch, "raise it"
    )
    _require(
      self.stem >= 0 and not (self.stem and self.patch % 4),
      "stem",
      f"must be >= 0, and needs a patch of a multiple of 4, has {self.patch}",
      self.stem,
      "change patch, or set stem=0",
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

  def __post_init__(self):
    _require(
      self.chunk >= 0, "chunk", "must be 0 or more", self.chunk, "raise it"
    )
    _require(
      self.scale >= 0,
      "scale",
      "must be above 0, or 0 for the loss's own",
      self.scale,
      "raise it",
    )

  @property
  def first_scale(self) -> float:
    """s at the start: as given, or 14 of softmax and 10 of sigmoid."""
    return self.scale or {"softmax": 14.0, "sigmoid": 10.0}[self.loss]


@dataclasses.dataclass(frozen=True)
class Slow:
  """Captioner as judge: a decoder that cross-attends to ever finer tokens."""

  vision: Vision
  decoder: Stack  # its `layers` are the crossed ones, of all levels together
  text_layers: int = 1  # before them, without vision: once a query
  levels: int = 1  # 1 = a plain decoder over the ViT's tokens
  widths: tuple[int, ...] = ()  # channels of levels 1, 2, ...; may be longer
  stem: int = 128  # hidden channels of the convolution that sees the pixels
  d_mem: int = 64  # width of what is stored per visual token
  separate_directions: bool = False  # two decoders instead of one for both
  finer_frames: int = 1  # levels > 0 keep every n-th frame
  null_rate: float = 0.1  # share of training rows that see no picture
  loss: Literal["captioning", "matching"] = "captioning"

  def __post_init__(self):
    _require(
      1 <= self.levels <= 1 + len(self.widths),
      "levels",
      f"needs a width for each level above 0, has {self.widths}",
      self.levels,
      "lower levels or add to widths",
    )
    _require(
      self.decoder.layers >= self.levels,
      "decoder.layers",
      f"each of {self.levels} levels needs a layer",
      self.decoder.layers,
      "raise it or lower levels",
    )
    _require(
      self.vision.patch % 2 ** (self.levels - 1) == 0,
      "levels",
      f"each halves the patch of {self.vision.patch} pixels",
      self.levels,
      "use fewer levels or a larger patch",
    )
    _require(
      self.text_layers >= 0,
      "text_layers",
      "must be 0 or more",
      self.text_layers,
      "raise it",
    )
    _require(
      self.finer_frames >= 1,
      "finer_frames",
      "must be at least 1",
      self.finer_frames,
      "1 keeps every frame",
    )
    _require(
      0 <= self.null_rate < 1,
      "null_rate",
      "must be in [0, 1)",
      self.null_rate,
      "lower it",
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

  alpha: float = 1.0  # weight of the teacher's part
  clusters: int = 8  # of visuals and captions, judged whole, per step
  cluster_size: int = 16
  candidates: Literal["top_k", "batch"] = "top_k"  # top_k = Fast's neighbours
  lists: int = 4096  # clusters mined before training starts
  # Online, Slow judges what each step brings. Offline it judges every list once
  # before: a step then costs what Fast costs, and lists are seen again.
  teacher: Literal["online", "offline"] = "online"
  temperature: float = 0.0  # tau over the teacher's scores; 0 = as fitted

  def __post_init__(self):
    for field in ("clusters", "cluster_size", "lists"):
      value = getattr(self, field)
      _require(value >= 1, field, "must be at least 1", value, "raise it")
    _require(
      self.temperature >= 0,
      "temperature",
      "must be 0 or more",
      self.temperature,
      "0 takes the fitted one",
    )


@dataclasses.dataclass(frozen=True)
class Weights:
  """How Slow and Fast weigh when they rank together: fitted on validation."""

  # Fast's best of each validation query. 100, at five times the cost, ranked no
  # better on validation of scenes (seeds 101 and 102, fitted on half of the
  # pictures, judged on the other): R@1 moved by -0.2 to +0.2 points, re-ranking
  # 5 to 50 of Fast and of the distilled one; every 95 % interval holds 0.
  candidates: int = 20

  def __post_init__(self):
    _require(
      self.candidates >= 2,
      "candidates",
      "must be at least 2, to tell apart",
      self.candidates,
      "raise it",
    )


@dataclasses.dataclass(frozen=True)
class Optim:
  """Optax: the optimiser, warm-up, then the schedule."""

  # muon: matrices, the rest AdamW
  name: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
  learning_rate: float = 1e-3
  # rsqrt: peak * sqrt(warmup / step); wsd: constant, then linear to 0
  schedule: Literal["cosine", "constant", "rsqrt", "wsd"] = "cosine"
  warmup: int = 100  # steps
  cooldown: float = 0.2  # share of steps after warm-up that end in a line to 0
  weight_decay: float = 0.05
  decay: tuple[str, ...] = (".*/kernel", ".*/embedding")  # decayed parameters
  freeze: tuple[str, ...] = ()  # parameters that keep their first value
  clip: float = 1.0  # global gradient norm; 0 = never
  b1: float = 0.9
  b2: float = 0.98
  # Decay of a running mean of the parameters, which later programs then read in
  # their place; 0 = none.
  ema: float = 0.0

  def __post_init__(self):
    _require(0 <= self.ema < 1, "ema", "must be in [0, 1)", self.ema, "lower")
    _require(
      0 <= self.cooldown <= 1,
      "cooldown",
      "is a share of the steps, 0 to 1",
      self.cooldown,
      "lower it",
    )
    _require(
      self.schedule != "rsqrt" or self.warmup >= 1,
      "warmup",
      "schedule 'rsqrt' falls from the end of its warm-up, at least 1 step",
      self.warmup,
      "raise it",
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
  # the whole batch's: of contrastive losses too, for another forward pass.
  accumulate: int = 1
  log_every: int = 50  # steps
  save_every: int = 500
  keep: int = 2  # newest checkpoints
  keep_every: int = 0  # and those of every n-th step; 0 = none
  keep_best: int = 0  # and those best on validation, which programs then read
  eval_every: int = 0  # quick recall on a fixed validation sample; 0 = never
  eval_sample: int = 256  # visuals of it
  profile: tuple[int, ...] = ()  # (first, last) step to trace into profile/

  def __post_init__(self):
    for field in (
      *("steps", "batch_size", "accumulate"),
      *("log_every", "save_every", "keep"),
    ):
      value = getattr(self, field)
      _require(value >= 1, field, "must be at least 1", value, "raise it")
    _require(
      self.batch_size % self.accumulate == 0,
      "accumulate",
      f"must divide batch_size {self.batch_size}",
      self.accumulate,
      "change either",
    )
    _require(
      not self.keep_best
      or (self.eval_every > 0 and self.save_every % self.eval_every == 0),
      "keep_best",
      "needs a validation at every save: eval_every must divide save_every "
      f"{self.save_every}",
      self.eval_every,
      "change one of them",
    )
    _require(
      len(self.profile) in (0, 2),
      "profile",
      "is a first and a last step, or ()",
      self.profile,
      "give two numbers",
    )


ROWS = ("data", "fsdp")  # mesh axes that split the rows of a batch

# Axis of each dimension of a parameter, first match wins; a scanned stack has
# its layers in front. Placement lives here, not in the models.
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
  topology: str = ""  # that it is meant for, such as "v5e:16x16", or two of it
  rules: Rules = RULES

  def __post_init__(self):
    _require(
      self.slices >= 1, "slices", "must be at least 1", self.slices, "raise it"
    )
    sizes = (self.data, self.fsdp, self.model)
    _require(
      all(s == -1 or s >= 1 for s in sizes) and sizes.count(-1) <= 1,
      "data, fsdp, model",
      "axes are >= 1, one of them may be -1",
      sizes,
      "change them",
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

  def __post_init__(self):
    _require(
      self.stage == "fast" or self.slow is not None,
      "slow",
      f"stage {self.stage!r} needs a Slow model",
      None,
      "set config.slow",
    )
    visions = {"fast": self.fast.vision}
    if self.slow is not None:
      visions["slow"] = self.slow.vision
    for name, vision in visions.items():
      _require(
        self.data.image_size % vision.patch == 0,
        "data.image_size",
        f"must be a multiple of {name}.vision.patch {vision.patch}",
        self.data.image_size,
        "change either",
      )
    _require(
      self.stage != "distill" or bool(self.init.teacher),
      "init.teacher",
      "stage 'distill' needs a teacher",
      self.init.teacher,
      "name the stage that trained Slow, such as 'slow'",
    )
    _require(
      self.stage != "distill"
      or self.distill.candidates != "top_k"
      or bool(self.init.stage),
      "init.stage",
      "candidates 'top_k' are those of a trained Fast",
      self.init.stage,
      "name the stage that trained it, such as 'fast'",
    )
    _require(
      self.stage != "slow"
      or self.slow is None
      or self.slow.loss != "matching"
      or bool(self.init.teacher),
      "init.teacher",
      "slow.loss 'matching' needs a Fast that finds hard negatives",
      self.init.teacher,
      "name the stage that trained it, such as 'fast'",
    )

  @property
  def folder(self) -> str:
    return self.name or self.stage


def _stack(width: int, layers: int, heads: int) -> Stack:
  return Stack(width, layers, heads, 4 * width)


# Sizes by their usual names; `dataclasses.replace` makes variants.
VISION: dict[str, Vision] = {
  "tiny": Vision(_stack(64, 2, 4), 16),
  "Ti/16": Vision(_stack(192, 12, 3), 16),
  "S/32": Vision(_stack(384, 12, 6), 32),
  "S/16": Vision(_stack(384, 12, 6), 16),
  "B/32": Vision(_stack(768, 12, 12), 32),
  "B/16": Vision(_stack(768, 12, 12), 16),
  "L/16": Vision(_stack(1024, 24, 16), 16),
  "L/14": Vision(_stack(1024, 24, 16), 14),
}
TEXT: dict[str, Text] = {
  "tiny": Text(_stack(64, 2, 4)),
  "Ti": Text(_stack(192, 12, 3)),
  "S": Text(_stack(384, 12, 6)),
  "B": Text(_stack(768, 12, 12)),
  "L": Text(_stack(1024, 24, 16)),
}
DECODER: dict[str, Stack] = {
  "tiny": _stack(64, 2, 4),
  "S": _stack(384, 6, 6),
  "B": _stack(768, 12, 12),
  "L": _stack(1024, 12, 16),
}
