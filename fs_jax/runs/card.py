"""A stage's model card: what was trained, on what, how well, what licence.

Training writes it when a stage is done. It states only what the stage's folder
records; limits and intended use are for whoever publishes the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fs_jax import __version__, config
from fs_jax.machine import provenance

_WHAT = {
  "fast": "A dual encoder: one vector per visual and one per text.",
  "slow": "A captioner used as a judge: it scores how well a visual explains a "
  "text, read in both directions.",
  "distill": "A dual encoder that learned from a captioner's scores.",
}
_DIGEST = 16  # hexadecimal digits that tell models apart


def render(
  cfg: config.Config,
  *,
  step: int,
  parameters: int,
  examples: int,
  attribution: str,
  lines: Sequence[Mapping[str, Any]],
  contract: provenance.Contract,
  versions: Mapping[str, str],
) -> str:
  """Writes the card as Markdown.

  Args:
    cfg: the stage's config.
    step: the step whose parameters later programs read.
    parameters: the number of parameters.
    examples: the number of visuals in the training split.
    attribution: the data's attribution, with its licence; "" if none was given.
    lines: the lines of metrics.jsonl.
    contract: the stage's contract.
    versions: the versions of the packages that trained it.
  """
  validated = [x for x in lines if x.get("split") == "validation"]
  best = next((x for x in validated if x["step"] == step), None)
  rows = [
    ("stage", cfg.folder),
    ("parameters", f"{parameters:,}"),
    ("step", f"{step:,} of {cfg.train.steps:,}, {cfg.train.batch_size} each"),
    ("data", f"{cfg.data.dataset}, split {cfg.data.train!r}: {examples:,}"),
    ("pictures", f"{cfg.data.image_size} px, {cfg.data.frames} frame(s)"),
    ("starts from", cfg.init.stage or "random parameters"),
    ("teacher", cfg.init.teacher or "none"),
    ("seed", str(cfg.seed)),
  ]
  table = "\n".join(f"| {name} | {value} |" for name, value in rows)
  if best is None:
    metrics = "None was measured at this step."
  else:
    named = ", ".join(
      f"{name} {value:.3g}"
      for name, value in best.items()
      if name not in ("step", "time", "split")
    )
    metrics = (
      f"On at most {cfg.train.eval_sample} visuals of split "
      f"{cfg.data.validation!r}, among themselves: {named}. This is a curve to "
      "watch, not a result; `launch.evaluate` measures one."
    )
  digests = "\n".join(
    f"| {part} | {fields['digest'][:_DIGEST]} |"
    for part, fields in contract.items()
    if "digest" in fields
  )
  used = ", ".join(f"{name} {v}" for name, v in versions.items() if v)
  return f"""# {cfg.name or cfg.data.dataset}: {cfg.folder}

{_WHAT[cfg.stage]} Trained by fs_jax {__version__}. `config.json` beside this
file has every setting.

| | |
|---|---|
{table}

## Validation

{metrics}

## Data and licence

{attribution or "The data came without an attribution: ask who holds them."}

## Contract

What is encoded or fitted with these parameters carries this digest.

| part | SHA-256 |
|---|---|
{digests}

Trained with {used}.
"""
