"""Measures the README's claims on several seeds, with controls.

Each seed is a study of its own, with its own pictures and initial parameters;
all use one recipe. Verdicts are per seed, never of a mean.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from etils import epath

from fs_jax import config
from fs_jax.evaluate import reports
from fs_jax.evaluate.studies import (
  answers,
  checklist,
  galleries,
  query_set,
  study,
)
from fs_jax.machine import console, files
from fs_jax.runs import journal, layout

SPARE = 1.05  # factor on the control's time: never less than its rival's
EVERY = 1 << 20  # more visuals, and captions of each, than any split has


class Evidence(TypedDict):
  """The fields of evidence.json."""

  seeds: list[int]
  verdicts: dict[str, list[bool]]  # by claim, a verdict per seed
  minutes: float
  device: str  # in words
  reports: list[reports.Report]  # by seed


def measure(
  get_config: Callable[[str], Any], workdir: epath.PathLike, seeds: list[int]
) -> Evidence:
  """Runs a study per seed and writes the evidence; see `launch/evidence.py`."""
  per_seed = []
  for seed in seeds:
    console.say(f"== seed {seed}")
    folder = epath.Path(workdir) / f"seed-{seed}"
    per_seed.append(_measure_seed(get_config, folder, seed))
  evidence: Evidence = {
    "seeds": seeds,
    "verdicts": _verdicts(per_seed),
    "minutes": round(sum(sum(r["seconds"].values()) for r in per_seed) / 60, 1),
    "device": answers.describe_device(),
    "reports": per_seed,
  }
  files.write_json(epath.Path(workdir) / "evidence.json", evidence)
  text = _markdown(evidence)
  files.write_text(epath.Path(workdir) / "evidence.md", text)
  print(text)
  return evidence


def _measure_seed(
  get_config: Callable[[str], Any], folder: epath.Path, seed: int
) -> reports.Report:
  steps = study.begin(folder, {"study": "evidence", "seed": seed})
  stages = ("fast", "slow", "distill", "fast_longer")
  cfgs = {name: study.adapt(get_config(name), steps, seed) for name in stages}
  longer = cfgs.pop("fast_longer")
  study.train_all(steps, cfgs)
  study.train_all(steps, {"fast_longer": _match_time(longer, steps)})
  gallery = galleries.open_gallery(
    steps, "test", ("fast", "fast_longer", "distill")
  )
  tokenizer = gallery.slow.tokenizer
  queries = query_set.choose(gallery.source, tokenizer, study.QUERIES)
  by_ranker = answers.ask_all(steps, gallery, queries, (20,))
  return study.write_report(
    folder / layout.REPORT,
    steps,
    by_ranker,
    queries,
    answers.report_contract(gallery, queries),
    seed,
    paired=study.compare_pairs(by_ranker, study.PAIRS)
    + _compare_all_captions(steps, gallery),
  )


def _match_time(
  cfg: config.Config, steps: checklist.Checklist
) -> config.Config:
  """The control, with as many steps as the time of its rival allows.

  The claim is about time, because the speeds of Slow and Fast differ between
  machines. The count follows from files of finished steps, so a killed study
  decides on the same one.
  """
  rates = [
    line["examples_per_second"]
    for line in journal.read(layout.stage(steps.folder, "fast"))
    if "examples_per_second" in line
  ]
  rate = max(rates) / cfg.train.batch_size  # steps per second, undisturbed
  count = math.ceil(SPARE * _distillation_seconds(steps.seconds()) * rate)
  return dataclasses.replace(
    cfg, train=dataclasses.replace(cfg.train, steps=count)
  )


def _compare_all_captions(
  steps: checklist.Checklist, gallery: galleries.Gallery
) -> list[reports.Pair]:
  """Compares Fasts on every caption of the split.

  For Fasts these queries cost nothing, and narrow the interval. Intervals are
  over pictures, as everywhere.
  """
  queries = query_set.choose(
    gallery.source, gallery.slow.tokenizer, EVERY, captions=EVERY
  )
  by_ranker = answers.ask_fasts(steps, gallery, queries, prefix="every-")
  pairs = (("fast_distilled", "fast"), ("fast_distilled", "fast_longer"))
  return [
    {
      "name": f"{pair['name']}, all {len(queries.texts)} captions",
      "R@1": pair["R@1"],
    }
    for pair in study.compare_pairs(by_ranker, pairs)
  ]


def _verdicts(by_seed: list[reports.Report]) -> dict[str, list[bool]]:
  """Each claim, seed by seed."""
  verdicts: dict[str, list[bool]] = {}
  for report in by_seed:
    for claim, holds in _judge(report).items():
      verdicts.setdefault(claim, []).append(bool(holds))
  return verdicts


def _judge(report: reports.Report) -> dict[str, bool]:
  """Each claim on one seed."""
  rows = report["rows"]
  recall = {row["name"]: reports.interval(row["R@1"]) for row in rows}
  hard = {row["name"]: reports.interval(row["hard_R@1"]) for row in rows}
  gain = {x["name"]: reports.interval(x["R@1"]) for x in report["paired"]}
  all_captions = next(
    interval
    for name, interval in gain.items()
    if name.startswith("fast_distilled - fast_longer, all")
  )
  seconds = report["seconds"]
  faster = report["times_faster_than_slow"]["rerank@20"]
  chance = report["chance"] or 0.0
  return {
    "a: fast_rerank@20 above fast, disjoint intervals": (
      recall["fast_rerank@20"].low > recall["fast"].high
    ),
    "a: and above fast_longer, disjoint intervals": (
      recall["fast_rerank@20"].low > recall["fast_longer"].high
    ),
    "a: hard R@1 of fast_rerank@20 above chance and fast": (
      hard["fast_rerank@20"].low > max(chance, hard["fast"].value)
    ),
    "b: rerank@20 within a point of slow, or above": (
      gain["rerank@20 - slow"].value >= -1
    ),
    "b: at 0.8 N/K of its speed or more": (
      faster >= 0.8 * report["gallery"] / 20
    ),
    "c: fast_longer had all the time of distillation and its teacher": (
      seconds["fast_longer"] >= _distillation_seconds(seconds)
    ),
    "c: fast_distilled above fast_longer, interval without 0": (
      all_captions.low > 0
    ),
    "c: rerank@20 at least fast_rerank@20": (
      gain["rerank@20 - fast_rerank@20"].value >= 0
    ),
  }


def _distillation_seconds(seconds: Mapping[str, float]) -> float:
  """Seconds that a distilled Fast costs beyond Fast, its teacher's included."""
  return sum(seconds[step] for step in ("slow", "weigh-fast", "distill"))


def _markdown(evidence: Evidence) -> str:
  """A table for RESULTS.md: rows and claims by seed."""
  by_seed = evidence["reports"]
  first, seconds = by_seed[0], [r["seconds"] for r in by_seed]
  head = [f"seed {seed}" for seed in evidence["seeds"]]
  lines = [_line("R@1, hard R@1 (percent)", head), "|---|" + "---|" * len(head)]
  for name in [row["name"] for row in first["rows"]]:
    rows = [next(x for x in r["rows"] if x["name"] == name) for r in by_seed]
    lines.append(_line(name, [_row_cell(row) for row in rows]))
  for name in [pair["name"] for pair in first["paired"]]:
    pairs = [next(x for x in r["paired"] if x["name"] == name) for r in by_seed]
    lines.append(_line(name, [_pair_cell(pair) for pair in pairs]))
  for stage in ("fast", "fast_longer", "slow", "distill"):
    cells = [f"{each[stage]:.0f} s" for each in seconds]
    lines.append(_line(f"training {stage}", cells))
  cells = [f"{_distillation_seconds(each):.0f} s" for each in seconds]
  lines.append(_line("slow, its fit and distill together", cells))
  faster = [r["times_faster_than_slow"]["rerank@20"] for r in by_seed]
  cells = [f"{times:.0f}x" for times in faster]
  lines.append(_line("rerank@20 faster than slow", cells))
  for claim, verdicts in evidence["verdicts"].items():
    lines.append(_line(claim, ["yes" if holds else "no" for holds in verdicts]))
  lines += [
    "",
    f"{first['queries']} queries, {first['gallery']} visuals, hard "
    f"R@1 by chance {first['chance']:.0f}; {evidence['minutes']} minutes on "
    f"{evidence['device']}.",
  ]
  return "\n".join(lines) + "\n"


def _line(name: str, cells: Sequence[str]) -> str:
  return f"| {name} | " + " | ".join(cells) + " |"


def _row_cell(row: reports.Row) -> str:
  value, low, high = reports.interval(row["R@1"])
  hard = reports.interval(row["hard_R@1"])
  return f"{value:.1f} [{low:.1f}, {high:.1f}], {hard.value:.1f}"


def _pair_cell(pair: reports.Pair) -> str:
  value, low, high = reports.interval(pair["R@1"])
  return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
