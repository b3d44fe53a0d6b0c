"""Three seeds with controls: what the README claims, measured.

Each seed is a study of its own: other pictures, other first parameters, one
recipe. Verdicts are of a seed, never of a mean.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from fs_jax import config
from fs_jax.evaluate.studies import answers, checklist, study
from fs_jax.evaluate.studies import gallery as gallery_module
from fs_jax.machine import console, files
from fs_jax.runs import journal, layout

SPARE = 1.05  # of the control's time: it never gets less than it stands against
EVERY = 1 << 20  # more visuals, and captions of each, than any split has


def evidence(
  get_config: Callable[[str], Any], workdir: epath.PathLike, seeds: list[int]
) -> dict[str, Any]:
  """Three seeds with controls; see `launch/evidence.py`."""
  per_seed = []
  for seed in seeds:
    console.say(f"== seed {seed}")
    where = epath.Path(workdir) / f"seed-{seed}"
    per_seed.append(_evidence_of(get_config, where, seed))
  made = {
    "seeds": seeds,
    "verdicts": _verdicts(per_seed),
    "minutes": round(sum(sum(r["seconds"].values()) for r in per_seed) / 60, 1),
    "device": answers.device(),
    "reports": per_seed,
  }
  files.write_json(epath.Path(workdir) / "evidence.json", made)
  text = _markdown(made)
  files.write_text(epath.Path(workdir) / "evidence.md", text)
  print(text)
  return made


def _evidence_of(
  get_config: Callable[[str], Any], where: epath.Path, seed: int
) -> dict[str, Any]:
  parts = study.begin(where, {"study": "evidence", "seed": seed})
  stages = ("fast", "slow", "distill", "fast_longer")
  cfgs = {n: study.of_study(get_config(n), parts, seed) for n in stages}
  longer = cfgs.pop("fast_longer")
  study.train_all(parts, cfgs)
  study.train_all(parts, {"fast_longer": _as_long(longer, parts)})
  gallery = gallery_module.open_gallery(
    parts, "test", ("fast", "fast_longer", "distill")
  )
  tokenizer = gallery.slow.tokenizer
  asked = answers.questions(gallery.source, tokenizer, study.QUERIES)
  results = answers.ask_all(parts, gallery, asked, (20,))
  return study.write_report(
    where / layout.REPORT,
    parts,
    results,
    asked,
    answers.made_from(gallery, asked),
    seed,
    paired=study.comparisons(results, study.PAIRS)
    + _all_captions(parts, gallery),
  )


def _as_long(cfg: config.Config, parts: checklist.Parts) -> config.Config:
  """The control, with the steps that take as long as what it stands against.

  Machines differ in what makes Slow and Fast slow: time is what was promised.
  It follows from files of finished parts, so a killed study decides alike.
  """
  rates = [
    line["examples_per_second"]
    for line in journal.read(layout.stage(parts.folder, "fast"))
    if "examples_per_second" in line
  ]
  rate = max(rates) / cfg.train.batch_size  # steps a second, undisturbed
  steps = math.ceil(SPARE * _charged(parts.seconds()) * rate)
  return dataclasses.replace(
    cfg, train=dataclasses.replace(cfg.train, steps=steps)
  )


def _all_captions(
  parts: checklist.Parts, gallery: gallery_module.Gallery
) -> list[dict[str, Any]]:
  """Fasts on every caption of the split: they cost nothing, and differ less.

  Intervals are over pictures, as everywhere.
  """
  asked = answers.questions(
    gallery.source, gallery.slow.tokenizer, EVERY, captions=EVERY
  )
  results = answers.ask_fasts(parts, gallery, asked, prefix="every-")
  pairs = (("fast_distilled", "fast"), ("fast_distilled", "fast_longer"))
  return [
    pair | {"name": f"{pair['name']}, all {len(asked.texts)} captions"}
    for pair in study.comparisons(results, pairs)
  ]


def _verdicts(reports: list[dict[str, Any]]) -> dict[str, list[bool]]:
  """Each claim, seed by seed."""
  verdicts: dict[str, list[bool]] = {}
  for made in reports:
    rows = {row["name"]: row for row in made["rows"]}
    pairs = {pair["name"]: pair["R@1"] for pair in made["paired"]}
    faster = made["times_faster_than_slow"]
    saved = 0.8 * made["gallery"] / 20
    claims = {
      "a: fast_rerank@20 above fast, disjoint intervals": (
        rows["fast_rerank@20"]["R@1"][1] > rows["fast"]["R@1"][2]
      ),
      "a: and above fast_longer, disjoint intervals": (
        rows["fast_rerank@20"]["R@1"][1] > rows["fast_longer"]["R@1"][2]
      ),
      "a: hard R@1 of fast_rerank@20 above chance and fast": (
        rows["fast_rerank@20"]["hard_R@1"][1]
        > max(made["chance"], rows["fast"]["hard_R@1"][0])
      ),
      "b: rerank@20 within a point of slow, or above": (
        pairs["rerank@20 - slow"][0] >= -1
      ),
      "b: at 0.8 N/K of its speed or more": faster["rerank@20"] >= saved,
      "c: fast_longer had all the time of distillation and its teacher": (
        made["seconds"]["fast_longer"] >= _charged(made["seconds"])
      ),
      "c: fast_distilled above fast_longer, interval without 0": (
        next(
          value
          for name, value in pairs.items()
          if name.startswith("fast_distilled - fast_longer, all")
        )[1]
        > 0
      ),
      "c: rerank@20 at least fast_rerank@20": (
        pairs["rerank@20 - fast_rerank@20"][0] >= 0
      ),
    }
    for name, holds in claims.items():
      verdicts.setdefault(name, []).append(bool(holds))
  return verdicts


def _charged(seconds: Mapping[str, float]) -> float:
  """Seconds that a distilled Fast costs beyond Fast: its teacher's too."""
  return sum(seconds[part] for part in ("slow", "weigh-fast", "distill"))


def _markdown(made: Mapping[str, Any]) -> str:
  """Tables for the README: rows and claims by seed."""
  names = [row["name"] for row in made["reports"][0]["rows"]]
  seeds = made["seeds"]
  lines = [
    "| R@1, hard R@1 (percent) | "
    + " | ".join(f"seed {seed}" for seed in seeds)
    + " |",
    "|---|" + "---|" * len(seeds),
  ]
  for name in names:
    cells = []
    for single in made["reports"]:
      row = next(r for r in single["rows"] if r["name"] == name)
      value, low, high = row["R@1"]
      cells.append(
        f"{value:.1f} [{low:.1f}, {high:.1f}], {row['hard_R@1'][0]:.1f}"
      )
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  for name in [pair["name"] for pair in made["reports"][0]["paired"]]:
    cells = []
    for single in made["reports"]:
      pair = next(p for p in single["paired"] if p["name"] == name)
      value, low, high = pair["R@1"]
      cells.append(f"{value:+.1f} [{low:+.1f}, {high:+.1f}]")
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  for stage in ("fast", "fast_longer", "slow", "distill"):
    cells = [f"{r['seconds'][stage]:.0f} s" for r in made["reports"]]
    lines.append(f"| training {stage} | " + " | ".join(cells) + " |")
  cells = [f"{_charged(r['seconds']):.0f} s" for r in made["reports"]]
  lines.append(
    "| slow, its fit and distill together | " + " | ".join(cells) + " |"
  )
  cells = [
    f"{r['times_faster_than_slow']['rerank@20']:.0f}x" for r in made["reports"]
  ]
  lines.append("| rerank@20 faster than slow | " + " | ".join(cells) + " |")
  for name, holds in made["verdicts"].items():
    cells = ["yes" if h else "no" for h in holds]
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  first = made["reports"][0]
  lines += [
    "",
    f"{first['queries']} queries, {first['gallery']} visuals, hard "
    f"R@1 by chance {first['chance']:.0f}; {made['minutes']} minutes on "
    f"{made['device']}.",
  ]
  return "\n".join(lines) + "\n"
