"""Whether the stages that a stage starts from fit it.

A stage that starts from another one's parameters, or learns from its scores,
sees pictures and words as that one did, and has the sizes of the parameters it
reads. All of that is compared before anything is mined, judged or trained: a
teacher that was shown other pixels still gives scores, and they mean nothing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from fs_jax import config
from fs_jax.data import tokenizer as tokenizers
from fs_jax.machine import console, provenance
from fs_jax.runs import contract, stages
from fs_jax.search import fusion

# Prefixes of parameters' names, and the sections of the config that give their
# sizes.
_MODELS = {
  "fast/vision/": "fast.vision",
  "fast/text_tower/": "fast.text",
  "slow/encoder/vision/": "slow.vision",
  "fast/": "fast",
  "slow/": "slow",
}
_NEAR = 0.05  # share of an entropy's range, at either end, that says nothing


def check(
  cfg: config.Config, donor: stages.Run | None, teacher: stages.Run | None
) -> dict[str, provenance.Part]:
  """Compares the earlier stages of a config with it; returns their contracts.

  Args:
    cfg: the config of the stage that begins.
    donor: `init.stage`, whose parameters it starts from.
    teacher: `init.teacher`: Slow that is distilled, or the Fast that draws hard
      negatives for slow.loss "matching".

  Raises:
    ValueError: the first field that differs, with both values and the flag
      that would make them agree.
  """
  made_from: dict[str, provenance.Part] = {}
  for role, run in (("stage", donor), ("teacher", teacher)):
    if run is None:
      continue
    _compare(cfg, role, run, contract.inputs(cfg), contract.inputs(run.cfg))
    _check_words(cfg, role, run)
    for part, fields in run.contract.items():
      made_from[f"{role}_{part}"] = fields
  if teacher is not None:
    _check_model(cfg, "teacher", teacher, *_whole(cfg))
  if donor is not None:
    for theirs, ours in cfg.init.prefixes or (("fast/", "fast/"),):
      if theirs in _MODELS and ours in _MODELS:
        _check_model(cfg, "stage", donor, _MODELS[theirs], _MODELS[ours])
  if donor is not None and teacher is not None:
    _check_vocabularies(cfg, donor, teacher)
  return made_from


def check_entropy(
  cfg: config.Config,
  h: Float[np.ndarray, "Q K"],
  n: Float[np.ndarray, "Q"],
  gamma: float,
  tau: float,
) -> float:
  """Mean entropy of a teacher over its lists, nats; warns near either end.

  Args:
    cfg: the config of the stage that distils.
    h: the teacher's scores of each text's list, nats.
    n: targets of each text.
    gamma: the exponent of n.
    tau: the temperature.
  """
  mask = np.ones(h.shape, bool)
  entropy = fusion.teacher_entropy(h, n, mask, gamma=gamma, tau=tau)
  most = float(np.log(h.shape[1]))
  console.say(
    f"{cfg.folder}: the teacher's mean entropy is {entropy:.3f} nats of at "
    f"most log {h.shape[1]} = {most:.3f}, tau {tau:.4g}"
  )
  wrong = ""
  if entropy < _NEAR * most:
    wrong = (
      "is sure of one candidate of each list, and teaches no more than a "
      "label. raise"
    )
  elif entropy > (1 - _NEAR) * most:
    wrong = "gives all candidates of a list the same, and says nothing. lower"
  if wrong:
    console.say(
      f"warning: {cfg.folder}: its teacher, stage {cfg.init.teacher!r}, "
      f"{wrong} --config.distill.temperature (now {tau:.4g}), or train the "
      "teacher longer"
    )
  return entropy


def _whole(cfg: config.Config) -> tuple[str, str]:
  return ("slow", "slow") if cfg.stage == "distill" else ("fast", "fast")


def _check_model(
  cfg: config.Config, role: str, run: stages.Run, theirs: str, ours: str
) -> None:
  """Compares the sizes of the same part of two models."""
  mine = contract.sizes(cfg, ours)
  other = contract.sizes(run.cfg, theirs)
  if role == "stage" and ours == "fast":  # what is not there starts afresh
    mine.pop("loss", None), other.pop("loss", None)
  _compare(
    cfg,
    role,
    run,
    {f"{ours}.{name}": x for name, x in mine.items()},
    {f"{ours}.{name}": x for name, x in other.items()},
  )


def _compare(
  cfg: config.Config,
  role: str,
  run: stages.Run,
  mine: Mapping[str, Any],
  other: Mapping[str, Any],
) -> None:
  for field in [*mine, *(f for f in other if f not in mine)]:
    if mine.get(field) != other.get(field):
      raise ValueError(
        f"{field}: stage {cfg.folder!r} and its init.{role} "
        f"{run.folder.name!r} must agree; got {mine.get(field)!r} and "
        f"{other.get(field)!r}. train {run.folder.name!r} again with the "
        f"former in another --workdir, or give "
        f"{contract.flag(field, other.get(field))}"
      )


def _check_words(cfg: config.Config, role: str, run: stages.Run) -> None:
  """Checks that a vocabulary named by the config is the earlier stage's."""
  if not cfg.tokens.file:
    return
  named = tokenizers.make((), cfg.tokens)
  if named.hash != run.tokenizer.hash:
    raise ValueError(
      f"tokens.file: must hold the vocabulary of init.{role} "
      f"{run.folder.name!r}, {run.tokenizer.hash[:12]}; got {named.hash[:12]}. "
      f"leave the file out, as that stage brings its own, or train "
      f"{run.folder.name!r} with it"
    )


def _check_vocabularies(
  cfg: config.Config, donor: stages.Run, teacher: stages.Run
) -> None:
  if donor.tokenizer.hash != teacher.tokenizer.hash:
    raise ValueError(
      f"tokenizer: init.stage {cfg.init.stage!r} and init.teacher "
      f"{cfg.init.teacher!r} must read with one vocabulary; got "
      f"{donor.tokenizer.hash[:12]} and {teacher.tokenizer.hash[:12]}. train "
      f"one from the other, in one --workdir"
    )
