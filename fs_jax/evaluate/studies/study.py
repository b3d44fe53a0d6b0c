"""Whole studies: what `make quickstart` and `launch.evaluate` run.

Every step leaves its result in a file and is skipped if that file is there, so
a killed study continues where it stopped and ends with the same numbers.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from etils import epath

from fs_jax import config, configdict
from fs_jax.data import sources
from fs_jax.evaluate import reports, results, validation
from fs_jax.evaluate.page import examples, page
from fs_jax.evaluate.studies import answers, checklist, galleries, query_set
from fs_jax.machine import console, files, provenance
from fs_jax.runs import contract as contracts
from fs_jax.runs import journal, layout, stages
from fs_jax.search import grounding, weigh
from fs_jax.train import train

SMALL = 0.5  # share of the steps in a smoke test: enough for Slow to see
LOOKS = 4  # pictures whose words' attention is drawn
QUERIES = 512  # asked of every ranker, Slow alone among them
KS = (5, 10, 20, 50)  # candidates that are re-ranked
PAIRS = (  # compared query by query
  ("fast_rerank@20", "fast"),
  ("fast_rerank@20", "fast_longer"),
  ("rerank@20", "slow"),
  ("fast_longer", "fast"),
  ("fast_distilled", "fast"),
  ("fast_distilled", "fast_longer"),
  ("rerank@20", "fast_rerank@20"),
)


def begin(
  workdir: epath.PathLike, values: Mapping[str, Any]
) -> checklist.Checklist:
  """Begins or continues a study in a folder.

  Raises:
    ValueError: the folder's study was begun with other values.
  """
  path = epath.Path(workdir) / layout.STUDY
  if path.exists():
    old = json.loads(path.read_text())
    for key, value in values.items():
      if old.get(key) != value:
        raise ValueError(
          f"{workdir}: a study goes on with the {key} it began with, "
          f"{old.get(key)!r}; got {value!r}. choose another WORKDIR, or delete "
          "that folder to start again"
        )
  else:
    files.write_json(path, dict(values))
  return checklist.Checklist(workdir)


def compare_pairs(
  by_ranker: Mapping[str, results.Result], pairs: tuple[tuple[str, str], ...]
) -> list[reports.Pair]:
  """Compares R@1 of two rankers each, query by query."""
  return [
    {
      "name": f"{a} - {b}",
      "R@1": reports.percent(results.compare(by_ranker[a], by_ranker[b])),
    }
    for a, b in pairs
    if a in by_ranker and b in by_ranker
  ]


def write_report(
  path: epath.Path,
  steps: checklist.Checklist,
  by_ranker: Mapping[str, results.Result],
  queries: query_set.QuerySet,
  contract: provenance.Contract,
  seed: int,
  **extras: Unpack[reports.Extras],
) -> reports.Report:
  """Writes a study's report.json; returns what it wrote."""
  ms = {
    name: result.ms_per_query
    for name, result in by_ranker.items()
    if result.ms_per_query is not None
  }
  chance = next(iter(by_ranker.values())).chance
  report: reports.Report = {
    "gallery": queries.truth.gallery_size,
    "queries": len(queries.texts),
    "rows": [result.to_row() for result in by_ranker.values()],
    "seed": seed,
    "seconds": steps.seconds(),
    "device": answers.describe_device(),
    "chance": None if chance is None else round(100 * chance, 2),
    "times_faster_than_slow": {
      name: round(ms["slow"] / each, 1) for name, each in ms.items()
    },
    **extras,
  }
  reports.write(path, contract, report)
  return json.loads(path.read_text())


def evaluate_split(
  workdir: epath.Path, split: str, count: int
) -> reports.Report:
  """Asks all rankers of a workdir `count` queries; returns the report."""
  steps = checklist.Checklist(layout.queries(workdir, split, count))
  fasts = tuple(weigh.weigh_all(workdir))
  gallery = galleries.open_gallery(checklist.Checklist(workdir), split, fasts)
  queries = query_set.choose(gallery.source, gallery.slow.tokenizer, count)
  by_ranker = answers.ask_all(steps, gallery, queries, KS)
  return write_report(
    layout.report(workdir, split, count),
    steps,
    by_ranker,
    queries,
    answers.report_contract(gallery, queries),
    gallery.slow.cfg.seed,
    paired=compare_pairs(by_ranker, PAIRS),
    fits={name: fit.to_dict() for name, fit in gallery.weights.items()},
    used_on=answers.list_reranked(gallery, KS),
  )


def quickstart(
  get_config: Callable[[str], Any],
  workdir: epath.PathLike,
  *,
  seed: int,
  small: bool = False,
) -> reports.Report:
  """Runs everything from data to page, as `launch/quickstart.py` says."""
  steps = begin(workdir, {"study": "quickstart", "seed": seed, "small": small})
  path = steps.folder / layout.REPORT
  cfgs = {
    stage: adapt(get_config(stage), steps, seed, SMALL if small else 1.0)
    for stage in ("fast", "slow", "distill")
  }
  train_all(steps, cfgs)
  gallery = galleries.open_gallery(steps, "test", ("fast", "distill"))
  queries = query_set.choose(
    gallery.source, gallery.slow.tokenizer, 64 if small else QUERIES
  )
  contract = answers.report_contract(gallery, queries)
  report = reports.read(path, contract)
  if report is not None and (steps.folder / layout.PAGE).exists():
    console.say(f"{steps.folder}: all steps are done; delete it to start again")
    reports.show(report)
    return report
  by_ranker = answers.ask_all(steps, gallery, queries, KS)
  report = write_report(
    path,
    steps,
    by_ranker,
    queries,
    contract,
    seed,
    paired=compare_pairs(by_ranker, PAIRS),
    fits={name: fit.to_dict() for name, fit in gallery.weights.items()},
    used_on=answers.list_reranked(gallery, KS),
    digests=digest_stages(gallery),
    example=queries.texts[0],
  )
  write_page(steps, gallery, queries, report)
  reports.show(report)
  console.say(f"{path}\n{steps.folder / layout.PAGE}")
  return report


def digest_stages(gallery: galleries.Gallery) -> dict[str, str]:
  """SHA-256 of every stage's parameters: equal ones were trained equally."""
  runs = {name: search.fast for name, search in gallery.searchers.items()}
  runs["slow"] = gallery.slow
  return {name: contracts.digest(run.params) for name, run in runs.items()}


def write_page(
  steps: checklist.Checklist,
  gallery: galleries.Gallery,
  queries: query_set.QuerySet,
  report: reports.Report,
) -> None:
  """Writes index.html: the report, a dozen queries, curves, attention maps."""
  source = gallery.source
  names = ("fast_distilled", "rerank@20")
  fast, final = (
    answers.read_answers(steps.folder / layout.ANSWERS / name).candidates
    for name in names
  )
  positives = queries.truth.positives
  choices = examples.choose_cases(fast, final, positives)
  cases = examples.show_cases(
    choices, queries.texts, fast, final, positives, source.visuals
  )
  looks = []
  for choice in choices[:LOOKS]:
    text = queries.texts[choice.query]
    picture = source.visuals([int(positives[choice.query, 0])])[0]
    words = grounding.ground_words(gallery.slow, picture, text)
    looks.append(page.Look(text, picture, words))
  curves = {
    stage: journal.read(layout.stage(steps.folder, stage))
    for stage in ("fast", "slow", "distill")
  }
  page.write(
    steps.folder / layout.PAGE,
    report,
    curves,
    cases,
    looks,
    source.attribution,
    lists=names,
  )


def adapt(
  c: Any, steps: checklist.Checklist, seed: int, share: float = 1.0
) -> config.Config:
  """Adapts a config of `configs/` to a study: its seed, data folder, budget.

  Args:
    c: the ConfigDict of a recipe.
    steps: the study's checklist; data go into its folder.
    seed: the study's seed.
    share: the share of the recipe's steps to train.
  """
  cfg = configdict.parse(c)
  count = max(round(cfg.train.steps * share), 2)
  return dataclasses.replace(
    cfg,
    seed=seed,
    data=dataclasses.replace(
      cfg.data, seed=seed, dir=os.fspath(steps.folder / layout.DATA)
    ),
    train=dataclasses.replace(cfg.train, steps=count),
  )


def train_all(
  steps: checklist.Checklist, cfgs: Mapping[str, config.Config]
) -> None:
  """Makes the data and trains every stage in order, then fits its weights."""
  first = next(iter(cfgs.values()))
  steps.do(
    "data",
    {"data": contracts.recipe(first, "data.")},
    lambda: sources.open_lazily(first.data, first.data.train),
  )
  for name, cfg in cfgs.items():
    _train(steps, name, cfg)
    if cfg.stage == "slow":
      _weigh(steps, "weigh-fast", "fast")
    if cfg.stage == "distill":
      _weigh(steps, "weigh-distill", "distill")


def _train(steps: checklist.Checklist, name: str, cfg: config.Config) -> None:
  folder = layout.stage(steps.folder, name)
  contract = {"config": contracts.recipe(cfg)}
  earlier = {"stage": cfg.init.stage, "teacher": cfg.init.teacher}
  for role, stage in earlier.items():
    if stage:
      parts = stages.load(layout.stage(steps.folder, stage)).contract
      contract |= {f"{role}_{part}": x for part, x in parts.items()}
  steps.do(
    name,
    contract,
    functools.partial(train.train, cfg, steps.folder, validation.quick_recall),
    lambda: not stages.is_finished(folder),
  )


def _weigh(steps: checklist.Checklist, step: str, fast: str) -> None:
  """Fits the weights of Slow and a Fast, unless they are fitted."""
  run, slow = (
    stages.load(layout.stage(steps.folder, name)) for name in (fast, "slow")
  )
  needed, contract = weigh.weights_needed(run, slow)
  steps.do(
    step,
    contract,
    lambda: weigh.weigh(steps.folder, fast, "slow"),
    lambda: needed,
  )
