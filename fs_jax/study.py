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
WARM_SLOW = 2  # queries that Slow alone answers before the clock runs
LOOKS = 4  # pictures whose words' attention is drawn
PAGE = "index.html"
QUERIES = 384  # asked of every ranker, Slow alone among them
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
  cfg: config.Data, split: str, tokenizer: Any, count: int, captions: int = 1
) -> Queries:
  """The first captions of `count` visuals, spread over the split's groups.

  Every n-th visual, so that all groups have their say. A visual of no group is
  alone in its own.
  """
  source = sources.open_split(cfg, split)
  rows = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
  said = [source.captions(int(i))[:captions] for i in rows]
  texts = tuple(text for some in said for text in some)
  owner = np.repeat(rows, [len(some) for some in said]).astype(np.int32)
  groups = np.asarray(source.groups)
  members = [
    np.flatnonzero(groups == groups[i]) if groups[i] >= 0 else np.array([i])
    for i in owner
  ]
  padded = np.full((len(owner), max(map(len, members))), -1, np.int32)
  for row, found in zip(padded, members, strict=True):
    row[: len(found)] = found
  truth = evaluate.Truth(
    positives=owner[:, None],
    clusters=owner,
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
  *,
  warm: int | None = None,
) -> Answers:
  """A ranker's answers, kept with the time they took.

  It answers `warm` queries before (all of them if None), so that compiling is
  in no figure.
  """
  folder = parts.folder / "answers" / name

  def run() -> None:
    ranker = make()
    ranker(tokens[:warm])
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


def fast_answers(
  parts: Parts, gallery: Gallery, asked: Queries, prefix: str = ""
) -> dict[str, evaluate.Result]:
  """Every Fast on the same queries; the distilled one as "fast_distilled".

  Args:
    parts: of the study.
    gallery: searched.
    asked: the queries.
    prefix: of the names on disk, apart for other queries.
  """
  results = {}
  for name in gallery.fasts:
    shown = "fast_distilled" if name == "distill" else name
    said = rank(
      parts,
      prefix + shown,
      functools.partial(_fast, gallery, name),
      functools.partial(_fast_inside, gallery, asked, name),
      asked.tokens,
    )
    results[shown] = _score(shown, said, asked.truth)
  return results


def answers(
  parts: Parts, gallery: Gallery, asked: Queries, ks: tuple[int, ...]
) -> dict[str, evaluate.Result]:
  """Every ranker on the same queries: Fasts, re-ranked, Slow alone.

  Returns:
    "fast", "fast_distilled", any other Fast under its own name, "slow",
    "fast_rerank@20" and "rerank@K", which is over the distilled Fast.
  """
  results = fast_answers(parts, gallery, asked)
  said = rank(
    parts,
    "slow",
    lambda: rankers.Slow(gallery.scorer, DEPTH),
    lambda: rankers.slow_in_group(
      gallery.scorer, asked.tokens, _groups(asked.truth)
    ),
    asked.tokens,
    warm=WARM_SLOW,  # its shapes are the same for every query
  )
  results["slow"] = _score("slow", said, asked.truth)
  over = [("fast_rerank@20", "fast", 20)]
  over += [(f"rerank@{k}", "distill", k) for k in ks]
  for shown, name, k in over:
    said = rank(
      parts,
      shown,
      functools.partial(_reranked, gallery, name, k),
      functools.partial(_reranked_inside, gallery, asked, name),
      asked.tokens,
    )
    results[shown] = _score(shown, said, asked.truth)
  return results


def _score(name: str, said: Answers, truth: evaluate.Truth) -> evaluate.Result:
  return evaluate.score(
    name,
    said.found,
    truth,
    ms_per_query=sum(said.stages_ms.values()),
    stages_ms=said.stages_ms,
    # Groups of one are no test of anything.
    in_group=said.in_group if _groups(truth).shape[1] > 1 else None,
  )


def _fast(gallery: Gallery, name: str) -> rankers.Fast:
  return rankers.Fast(gallery.fasts[name], gallery.indices[name], DEPTH)


def _reranked(gallery: Gallery, name: str, k: int) -> rankers.Reranked:
  base = _fast(gallery, name)
  return rankers.Reranked(base, gallery.scorer, gallery.fits[name], k)


def _fast_inside(
  gallery: Gallery, asked: Queries, name: str
) -> types.Candidates:
  return rankers.fast_in_group(
    gallery.fasts[name],
    gallery.vectors[name],
    asked.tokens,
    _groups(asked.truth),
  )


def _reranked_inside(
  gallery: Gallery, asked: Queries, name: str
) -> types.Candidates:
  inside = _fast_inside(gallery, asked, name)
  return rankers.reranked_in_group(
    inside, gallery.scorer, gallery.fits[name], asked.tokens
  )


def _groups(truth: evaluate.Truth) -> np.ndarray:
  """int32 [Q,G] of who looks alike; alone where nobody said."""
  return truth.positives if truth.groups is None else truth.groups


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
