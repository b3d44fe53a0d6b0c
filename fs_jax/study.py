"""Programs in a row: what `make quickstart` and `make evidence` run.

Every part leaves its result in a file and is skipped when that is there, so a
killed study goes on where it stopped and ends with the same numbers.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from fs_jax import (
  attention,
  config,
  configdict,
  contract,
  corpus,
  encode,
  evaluate,
  files,
  index,
  page,
  rankers,
  report,
  rerank,
  runs,
  store,
  train,
  types,
)
from fs_jax.data import pipeline, sources

DEPTH = 100  # Fast's list: what re-ranking and recall look at
SMALL = 0.3  # share of the steps in a smoke test: enough for Slow to see
WARM = 64  # queries answered before the clock runs
LOOKS = 4  # pictures whose words' attention is drawn
PAGE = "index.html"
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
STUDY = "study.json"


class Queries(NamedTuple):
  """The questions of a study, the same for every ranker."""

  texts: tuple[str, ...]
  tokens: np.ndarray  # int32 [Q,L]
  truth: evaluate.Truth


class Parts:
  """Named parts of a study, each done once."""

  def __init__(self, workdir: epath.PathLike):
    self.folder = epath.Path(workdir)

  def do(self, name: str, run: Callable[[], Any]) -> float:
    """Runs a part unless it was finished; returns the seconds it took."""
    path = self.folder / "parts" / f"{name}.json"
    if path.exists():
      return json.loads(path.read_text())["seconds"]
    report.say(f"-- {name}")
    began = time.perf_counter()
    run()
    seconds = round(time.perf_counter() - began, 2)
    files.write_json(path, {"seconds": seconds})
    return seconds

  def seconds(self) -> dict[str, float]:
    """Wall time of every finished part, in the order they were finished."""
    paths = [
      p for p in (self.folder / "parts").iterdir() if p.suffix == ".json"
    ]
    paths.sort(key=lambda p: p.stat().mtime)
    return {p.stem: json.loads(p.read_text())["seconds"] for p in paths}


def begin(workdir: epath.PathLike, values: Mapping[str, Any]) -> Parts:
  """A study's folder; one that was begun with other values is refused.

  Raises:
    ValueError: the folder belongs to another study.
  """
  path = epath.Path(workdir) / STUDY
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
  return Parts(workdir)


def questions(
  cfg: config.Data, split: str, tokenizer: Any, count: int
) -> Queries:
  """The first caption of `count` visuals, spread over the split's groups.

  Every n-th visual, so that all groups have their say; one caption each, so
  that queries are independent given their pictures.
  """
  source = sources.open_split(cfg, split)
  rows = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
  texts = tuple(source.captions(int(i))[0] for i in rows)
  groups = np.asarray(source.groups)
  members = [np.flatnonzero(groups == groups[i]) for i in rows]
  width = max(len(m) for m in members)
  padded = np.full((len(rows), width), -1, np.int32)
  for row, found in zip(padded, members, strict=True):
    row[: len(found)] = found
  truth = evaluate.Truth(
    positives=rows[:, None].astype(np.int32),
    clusters=rows.astype(np.int32),
    gallery=len(source),
    groups=padded,
  )
  return Queries(texts, tokenizer.encode(list(texts)), truth)


class Answers(NamedTuple):
  """What a ranker said, as it is kept on disk."""

  found: types.Candidates
  in_group: types.Candidates  # the members of each query's group, scored
  stages_ms: dict[str, float]  # per query


def rank(
  parts: Parts,
  name: str,
  make: Callable[[], rankers.Ranker],
  in_group: Callable[[], types.Candidates],
  tokens: np.ndarray,
) -> Answers:
  """A ranker's answers, asked once and kept with the time they took.

  It answers a few queries before, so that compiling is in no figure.
  """
  folder = parts.folder / "answers" / name

  def run() -> None:
    ranker = make()
    ranker(tokens[:WARM])
    found = ranker(tokens)
    kept = {"found": found, "in_group": in_group()}
    with files.folder(folder) as temporary:
      for what, candidates in kept.items():
        for field, array in candidates._asdict().items():
          path = temporary / f"{what}-{field}.npy"
          files.write_array(path, np.asarray(array))
      stages = dict(ranker.stages_ms)
      files.write_manifest(temporary, {"kind": "answers", "stages_ms": stages})

  parts.do(f"rank-{name}", run)
  return read_answers(folder)


def read_answers(folder: epath.Path) -> Answers:
  """Reads what `rank` kept."""
  manifest = files.read_manifest(folder, "answers")

  def candidates(what: str) -> types.Candidates:
    return types.Candidates(
      *(
        np.load(os.fspath(folder / f"{what}-{field}.npy"))
        for field in types.Candidates._fields
      )
    )

  return Answers(
    candidates("found"), candidates("in_group"), manifest["stages_ms"]
  )


class Gallery(NamedTuple):
  """A split ready to be searched."""

  split: str
  fasts: dict[str, runs.Run]  # "fast", "distill", ...
  slow: runs.Run
  indices: dict[str, index.Index]  # of each Fast
  vectors: dict[str, np.ndarray]
  scorer: rerank.Scorer
  fits: dict[str, Any]  # of each Fast that has one


def open_gallery(
  parts: Parts, split: str, fasts: tuple[str, ...], slow: str = "slow"
) -> Gallery:
  """Encodes and indexes a split for some Fasts and one Slow."""
  loaded = {n: runs.load(runs.folder(parts.folder, n)) for n in fasts}
  judge = runs.load(runs.folder(parts.folder, slow))
  source = sources.open_split(judge.cfg.data, split)
  indices, vectors = {}, {}
  for name, run in loaded.items():
    where = parts.folder / "gallery" / split / name

    def build(run=run, where=where) -> None:
      made = encode.write_corpus(run, source, where / "corpus")
      some = sources.open_split(run.cfg.data, run.cfg.data.validation)
      text, _ = pipeline.caption_table(some, run.tokenizer)
      index.build(
        made,
        where / "index",
        {"fast": run.fast_contract},
        queries=encode.text_vectors(run, text[:1024]),
      )

    parts.do(f"index-{split}-{name}", build)
    expected = {
      "fast": run.fast_contract,
      "items": contract.items(source.ids),
    }
    indices[name] = index.load(where / "index", expected)
    vectors[name] = corpus.load(where / "corpus", expected).vectors
  kept = parts.folder / "gallery" / split / "store"
  parts.do(f"memories-{split}", lambda: encode.write_store(judge, source, kept))
  memories = store.Store(kept, {"slow": judge.slow_contract()})
  fits = {
    name: runs.load_fit(judge.folder if name == "fast" else run.folder)
    for name, run in loaded.items()
    if (run.folder / runs.FIT).exists() or name == "fast"
  }
  scorer = rerank.Scorer(judge, memories)
  return Gallery(split, loaded, judge, indices, vectors, scorer, fits)


def answers(
  parts: Parts, gallery: Gallery, asked: Queries, ks: tuple[int, ...]
) -> dict[str, evaluate.Result]:
  """Every ranker on the same queries: Fasts, re-ranked, Slow alone.

  Returns:
    "fast", "fast_distilled", "fast_rerank@20", "rerank@K" (over the distilled
    Fast), "slow", and any other Fast under its own name.
  """
  tokens, truth = asked.tokens, asked.truth
  groups = truth.groups
  assert groups is not None  # `questions` says which look alike
  results: dict[str, evaluate.Result] = {}

  def add(name: str, make: Callable[[], Any], inside: Callable[[], Any]):
    said = rank(parts, name, make, inside, tokens)
    results[name] = evaluate.score(
      name,
      said.found,
      truth,
      ms_per_query=sum(said.stages_ms.values()),
      stages_ms=said.stages_ms,
      in_group=said.in_group,
    )

  def fast(name: str) -> rankers.Fast:
    return rankers.Fast(gallery.fasts[name], gallery.indices[name], DEPTH)

  def fast_inside(name: str) -> types.Candidates:
    return rankers.fast_in_group(
      gallery.fasts[name], gallery.vectors[name], tokens, groups
    )

  def reranked(name: str, k: int) -> rankers.Reranked:
    return rankers.Reranked(fast(name), gallery.scorer, gallery.fits[name], k)

  def both_inside(name: str) -> types.Candidates:
    return rankers.reranked_in_group(
      fast_inside(name), gallery.scorer, gallery.fits[name], tokens
    )

  for name in gallery.fasts:
    shown = "fast_distilled" if name == "distill" else name
    inside = functools.partial(fast_inside, name)
    add(shown, functools.partial(fast, name), inside)
  add(
    "slow",
    lambda: rankers.Slow(gallery.scorer, DEPTH),
    lambda: rankers.slow_in_group(gallery.scorer, tokens, groups),
  )
  add(
    "fast_rerank@20",
    functools.partial(reranked, "fast", 20),
    functools.partial(both_inside, "fast"),
  )
  for k in ks:
    add(
      f"rerank@{k}",
      functools.partial(reranked, "distill", k),
      functools.partial(both_inside, "distill"),
    )
  return results


def comparisons(
  results: Mapping[str, evaluate.Result], pairs: tuple[tuple[str, str], ...]
) -> list[dict[str, Any]]:
  """Paired differences of R@1, points: [value, low, high] each."""
  return [
    {
      "name": f"{a} - {b}",
      "R@1": evaluate.percent(evaluate.compare(results[a], results[b])),
    }
    for a, b in pairs
    if a in results and b in results
  ]


def device() -> str:
  """What this ran on, in words."""
  kind = jax.devices()[0].device_kind
  return f"{len(jax.devices())} x {kind}, {os.cpu_count()} CPU cores"


def write_report(
  path: epath.Path,
  parts: Parts,
  results: Mapping[str, evaluate.Result],
  asked: Queries,
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
  evaluate.write_report(
    path,
    gallery=asked.truth.gallery,
    queries=len(asked.texts),
    rows=rows,
    seed=seed,
    seconds=parts.seconds(),
    device=device(),
    chance=None if chance is None else round(100 * chance, 2),
    times_faster_than_slow={
      name: round(ms["slow"] / each, 1) for name, each in ms.items()
    },
    **extras,
  )
  return json.loads(path.read_text())


class Found(NamedTuple):
  """Where the parts of a searchable gallery lie."""

  fast: epath.Path
  slow: epath.Path
  fit: epath.Path  # folder that holds fit.json
  index: epath.Path
  store: epath.Path


def find_gallery(workdir: epath.Path, split: str) -> Found:
  """The best Fast that has an index of the split, with what re-ranks it.

  A study keeps gallery/<split>/<stage>/index, the programs one by one
  gallery/index.

  Raises:
    ValueError: no trained Fast, or no index; the message says what to run.
  """
  names = [n for n in ("distill", "fast") if runs.finished(workdir / n)]
  if not names:
    raise ValueError(
      f"{workdir}: must hold a trained fast or distill; got neither. run make "
      "quickstart, or python -m launch.train"
    )
  for name in names:
    for folder, kept in (
      (workdir / "gallery" / split / name, workdir / "gallery" / split),
      (workdir / "gallery", workdir / "gallery"),
    ):
      if (folder / "index").exists():
        slow = workdir / "slow"
        fit = workdir / name if name == "distill" else slow
        return Found(
          workdir / name, slow, fit, folder / "index", kept / "store"
        )
  raise ValueError(
    f"{workdir}: must hold an index of split {split!r}; got none. run python "
    f"-m launch.encode --run={workdir / names[0]} --split={split} "
    f"--out={workdir / 'gallery'}, then launch.export_index"
  )


def report_path(workdir: epath.Path, split: str, queries: int) -> epath.Path:
  return workdir / "gallery" / split / f"report-{queries}.json"


def evaluate_split(
  workdir: epath.Path, split: str, queries: int
) -> dict[str, Any]:
  """All rankers of a workdir on a split; returns the report it wrote."""
  parts = Parts(workdir / "gallery" / split / f"queries-{queries}")
  gallery = open_gallery(Parts(workdir), split, ("fast", "distill"))
  cfg = gallery.slow.cfg
  asked = questions(cfg.data, split, gallery.slow.tokenizer, queries)
  results = answers(parts, gallery, asked, KS)
  return write_report(
    report_path(workdir, split, queries),
    parts,
    results,
    asked,
    cfg.seed,
    paired=comparisons(results, PAIRS),
  )


def evidence(
  get_config: Callable[[str], Any], workdir: epath.PathLike, seeds: list[int]
) -> dict[str, Any]:
  """Three seeds with controls; see `launch/evidence.py`."""
  began = time.perf_counter()
  per_seed = []
  for seed in seeds:
    report.say(f"== seed {seed}")
    where = epath.Path(workdir) / f"seed-{seed}"
    per_seed.append(_evidence_of(get_config, where, seed))
  made = {
    "seeds": seeds,
    "verdicts": _verdicts(per_seed),
    "minutes": round((time.perf_counter() - began) / 60, 1),
    "device": device(),
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
  parts = begin(where, {"study": "evidence", "seed": seed})
  stages = ("fast", "slow", "distill", "fast_longer")
  cfgs = {n: of_study(get_config(n), parts, seed) for n in stages}
  train_all(parts, cfgs)
  gallery = open_gallery(parts, "test", ("fast", "fast_longer", "distill"))
  tokenizer = gallery.slow.tokenizer
  asked = questions(cfgs["fast"].data, "test", tokenizer, QUERIES)
  results = answers(parts, gallery, asked, (20,))
  return write_report(
    where / "report.json",
    parts,
    results,
    asked,
    seed,
    paired=comparisons(results, PAIRS),
  )


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
      "c: fast_distilled above fast_longer, interval without 0": (
        pairs["fast_distilled - fast_longer"][1] > 0
      ),
      "c: rerank@20 at least fast_rerank@20": (
        pairs["rerank@20 - fast_rerank@20"][0] >= 0
      ),
    }
    for name, holds in claims.items():
      verdicts.setdefault(name, []).append(bool(holds))
  return verdicts


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


def quickstart(
  get_config: Callable[[str], Any],
  workdir: epath.PathLike,
  *,
  seed: int,
  small: bool = False,
) -> dict[str, Any]:
  """Data to page; see `launch/quickstart.py`. Returns report.json."""
  parts = begin(workdir, {"study": "quickstart", "seed": seed, "small": small})
  path = parts.folder / "report.json"
  if path.exists() and (parts.folder / PAGE).exists():
    report.say(f"{parts.folder}: all parts are done; delete it to start again")
    made = json.loads(path.read_text())
    evaluate.show(made)
    return made
  cfgs = {
    stage: of_study(get_config(stage), parts, seed, SMALL if small else 1.0)
    for stage in ("fast", "slow", "distill")
  }
  train_all(parts, cfgs)
  data = cfgs["fast"].data
  gallery = open_gallery(parts, "test", ("fast", "distill"))
  asked = questions(
    data, "test", gallery.slow.tokenizer, 64 if small else QUERIES
  )
  results = answers(parts, gallery, asked, KS)
  made = write_report(
    path,
    parts,
    results,
    asked,
    seed,
    paired=comparisons(results, PAIRS),
    fits={name: fit.to_dict() for name, fit in gallery.fits.items()},
    digests=digests(gallery),
  )
  draw(parts, gallery, asked, made)
  evaluate.show(made)
  report.say(f"{path}\n{parts.folder / PAGE}")
  return made


def digests(gallery: Gallery) -> dict[str, str]:
  """SHA-256 of every stage's parameters: equal ones were trained equally."""
  trained = gallery.fasts | {"slow": gallery.slow}
  return {name: contract.digest(run.params) for name, run in trained.items()}


def draw(
  parts: Parts, gallery: Gallery, asked: Queries, made: Mapping[str, Any]
) -> None:
  """index.html: the report, a dozen queries, curves, where words look."""
  source = sources.open_split(gallery.slow.cfg.data, gallery.split)
  lists = ("fast_distilled", "rerank@20")
  shown = {
    name: read_answers(parts.folder / "answers" / name) for name in lists
  }
  fast, final = (shown[name].found for name in lists)
  positives = asked.truth.positives
  choices = page.choose_cases(fast, final, positives)
  cases = page.show_cases(
    choices, asked.texts, fast, final, positives, source.visuals
  )
  looks = []
  for choice in choices[:LOOKS]:
    text = asked.texts[choice.query]
    picture = source.visuals([int(positives[choice.query, 0])])[0]
    words = attention.word_attention(gallery.slow, picture, text)
    looks.append(page.Look(text, picture, words))
  stages = ("fast", "slow", "distill")
  curves = {s: report.read(runs.folder(parts.folder, s)) for s in stages}
  page.write(
    parts.folder / PAGE,
    made,
    curves,
    cases,
    looks,
    source.attribution,
    lists=lists,
  )


def of_study(
  c: Any, parts: Parts, seed: int, share: float = 1.0
) -> config.Config:
  """A config of `configs/`, with the study's seed, data folder and budget."""
  cfg = configdict.parse(c)
  steps = max(round(cfg.train.steps * share), 2)
  return dataclasses.replace(
    cfg,
    seed=seed,
    data=dataclasses.replace(
      cfg.data, seed=seed, dir=os.fspath(parts.folder / "data")
    ),
    train=dataclasses.replace(cfg.train, steps=steps),
  )


def train_all(parts: Parts, cfgs: Mapping[str, config.Config]) -> None:
  """Data, then every stage in order, each with the weights it needs."""
  data = cfgs["fast"].data
  parts.do("data", lambda: sources.open_split(data, data.train))
  for name, cfg in cfgs.items():
    parts.do(name, functools.partial(train.train, cfg, parts.folder))
    if cfg.stage == "slow":
      parts.do("weigh-fast", lambda: train.weigh(parts.folder, "fast", "slow"))
    if cfg.stage == "distill":
      parts.do(
        "weigh-distill", lambda: train.weigh(parts.folder, "distill", "slow")
      )
