"""Programs in a row: what `make quickstart` and `make evidence` run.

Every part leaves its result in a file and is skipped when that is there, so a
killed study goes on where it stopped and ends with the same numbers.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from fs_jax import config, configdict
from fs_jax.data import sources
from fs_jax.evaluate import results as results_
from fs_jax.evaluate import validation
from fs_jax.evaluate.page import examples, page
from fs_jax.evaluate.studies import answers, checklist
from fs_jax.evaluate.studies import gallery as gallery_module
from fs_jax.machine import console, files, provenance
from fs_jax.runs import contract, journal, layout
from fs_jax.runs import stages as stages_
from fs_jax.search import grounding, weigh
from fs_jax.train import train

SMALL = 0.5  # share of the steps in a smoke test: enough for Slow to see
LOOKS = 4  # pictures whose words' attention is drawn
QUERIES = 512  # asked of every ranker, Slow alone among them
KS = (5, 10, 20, 50)  # candidates that the re-ranker takes
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
) -> checklist.Parts:
  """A study's folder; one that was begun with other values is refused.

  Raises:
    ValueError: the folder belongs to another study.
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
  return checklist.Parts(workdir)


def comparisons(
  results: Mapping[str, results_.Result], pairs: tuple[tuple[str, str], ...]
) -> list[dict[str, Any]]:
  """Paired differences of R@1, points: [value, low, high] each."""
  return [
    {
      "name": f"{a} - {b}",
      "R@1": results_.percent(results_.compare(results[a], results[b])),
    }
    for a, b in pairs
    if a in results and b in results
  ]


def write_report(
  path: epath.Path,
  parts: checklist.Parts,
  results: Mapping[str, results_.Result],
  asked: answers.Queries,
  made_from: provenance.Contract,
  seed: int,
  **extras: Any,
) -> dict[str, Any]:
  """report.json of a study; returns what it wrote."""
  rows = [result.to_row() for result in results.values()]
  ms = {
    name: result.ms_per_query
    for name, result in results.items()
    if result.ms_per_query is not None
  }
  chance = next(iter(results.values())).chance
  results_.write_report(
    path,
    made_from,
    gallery=asked.truth.gallery,
    queries=len(asked.texts),
    rows=rows,
    seed=seed,
    seconds=parts.seconds(),
    device=answers.device(),
    chance=None if chance is None else round(100 * chance, 2),
    times_faster_than_slow={
      name: round(ms["slow"] / each, 1) for name, each in ms.items()
    },
    **extras,
  )
  return json.loads(path.read_text())


def evaluate_split(
  workdir: epath.Path, split: str, queries: int
) -> dict[str, Any]:
  """All rankers of a workdir on a split; returns the report it wrote."""
  kept = checklist.Parts(layout.queries(workdir, split, queries))
  fasts = tuple(weigh.weigh_all(workdir))
  gallery = gallery_module.open_gallery(checklist.Parts(workdir), split, fasts)
  cfg = gallery.slow.cfg
  asked = answers.questions(gallery.source, gallery.slow.tokenizer, queries)
  results = answers.ask_all(kept, gallery, asked, KS)
  return write_report(
    layout.report(workdir, split, queries),
    kept,
    results,
    asked,
    answers.made_from(gallery, asked),
    cfg.seed,
    paired=comparisons(results, PAIRS),
    fits={name: fit.to_dict() for name, fit in gallery.weights.items()},
    used_on=answers.used_on(gallery, KS),
  )


def quickstart(
  get_config: Callable[[str], Any],
  workdir: epath.PathLike,
  *,
  seed: int,
  small: bool = False,
) -> dict[str, Any]:
  """Data to page; see `launch/quickstart.py`. Returns report.json."""
  parts = begin(workdir, {"study": "quickstart", "seed": seed, "small": small})
  path = parts.folder / layout.REPORT
  cfgs = {
    stage: of_study(get_config(stage), parts, seed, SMALL if small else 1.0)
    for stage in ("fast", "slow", "distill")
  }
  train_all(parts, cfgs)
  gallery = gallery_module.open_gallery(parts, "test", ("fast", "distill"))
  asked = answers.questions(
    gallery.source, gallery.slow.tokenizer, 64 if small else QUERIES
  )
  made_from = answers.made_from(gallery, asked)
  made = provenance.record(path, results_.REPORT, made_from)
  if made is not None and (parts.folder / layout.PAGE).exists():
    console.say(f"{parts.folder}: all parts are done; delete it to start again")
    results_.show(made)
    return made
  results = answers.ask_all(parts, gallery, asked, KS)
  made = write_report(
    path,
    parts,
    results,
    asked,
    made_from,
    seed,
    paired=comparisons(results, PAIRS),
    fits={name: fit.to_dict() for name, fit in gallery.weights.items()},
    used_on=answers.used_on(gallery, KS),
    digests=digests(gallery),
    example=asked.texts[0],  # something that this world has
  )
  draw(parts, gallery, asked, made)
  results_.show(made)
  console.say(f"{path}\n{parts.folder / layout.PAGE}")
  return made


def digests(gallery: gallery_module.Gallery) -> dict[str, str]:
  """SHA-256 of every stage's parameters: equal ones were trained equally."""
  trained = {name: one.fast for name, one in gallery.searchers.items()}
  trained["slow"] = gallery.slow
  return {name: contract.digest(run.params) for name, run in trained.items()}


def draw(
  parts: checklist.Parts,
  gallery: gallery_module.Gallery,
  asked: answers.Queries,
  made: Mapping[str, Any],
) -> None:
  """index.html: the report, a dozen queries, curves, where words look."""
  source = gallery.source
  lists = ("fast_distilled", "rerank@20")
  shown = {
    name: answers.read_answers(parts.folder / layout.ANSWERS / name)
    for name in lists
  }
  fast, final = (shown[name].found for name in lists)
  positives = asked.truth.positives
  choices = examples.choose_cases(fast, final, positives)
  found = examples.show_cases(
    choices, asked.texts, fast, final, positives, source.visuals
  )
  looks = []
  for choice in choices[:LOOKS]:
    text = asked.texts[choice.query]
    picture = source.visuals([int(positives[choice.query, 0])])[0]
    words = grounding.ground_words(gallery.slow, picture, text)
    looks.append(page.Look(text, picture, words))
  stages = ("fast", "slow", "distill")
  curves = {s: journal.read(layout.stage(parts.folder, s)) for s in stages}
  page.write(
    parts.folder / layout.PAGE,
    made,
    curves,
    found,
    looks,
    source.attribution,
    lists=lists,
  )


def of_study(
  c: Any, parts: checklist.Parts, seed: int, share: float = 1.0
) -> config.Config:
  """A config of `configs/`, with the study's seed, data folder and budget."""
  cfg = configdict.parse(c)
  steps = max(round(cfg.train.steps * share), 2)
  return dataclasses.replace(
    cfg,
    seed=seed,
    data=dataclasses.replace(
      cfg.data, seed=seed, dir=os.fspath(parts.folder / layout.DATA)
    ),
    train=dataclasses.replace(cfg.train, steps=steps),
  )


def train_all(
  parts: checklist.Parts, cfgs: Mapping[str, config.Config]
) -> None:
  """Data, then every stage in order, each with the weights it needs."""
  data = next(iter(cfgs.values())).data
  origin = {"data": contract.recipe(next(iter(cfgs.values())), "data.")}
  parts.do("data", origin, lambda: sources.open_lazily(data, data.train))
  for name, cfg in cfgs.items():
    folder = layout.stage(parts.folder, name)
    made_from = {"config": contract.recipe(cfg)}
    for role in ("stage", "teacher"):
      earlier = getattr(cfg.init, role)
      if earlier:
        made_from |= {
          f"{role}_{part}": fields
          for part, fields in stages_.load(
            layout.stage(parts.folder, earlier)
          ).contract.items()
        }
    parts.do(
      name,
      made_from,
      functools.partial(
        train.train, cfg, parts.folder, validation.quick_recall
      ),
      lambda folder=folder: not stages_.is_finished(folder),  # type: ignore[misc]
    )
    if cfg.stage == "slow":
      _weigh(parts, "weigh-fast", "fast")
    if cfg.stage == "distill":
      _weigh(parts, "weigh-distill", "distill")


def _weigh(parts: checklist.Parts, step: str, fast: str) -> None:
  """The weights of Slow and a Fast; `train` knows whether they hold."""
  run, slow = (
    stages_.load(layout.stage(parts.folder, n)) for n in (fast, "slow")
  )
  needed, made_from = weigh.weights_needed(run, slow)
  parts.do(
    step,
    made_from,
    lambda: weigh.weigh(parts.folder, fast, "slow"),
    lambda: needed,
  )
