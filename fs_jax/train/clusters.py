"""Candidate lists for the teacher: visuals that Fast confuses.

A cluster is the G visuals nearest to a captioned one by Fast's own vectors,
captioned or not, with the captions of the G nearest captioned ones. Slow then
scores each caption against each of them: that is what Fast has to learn.
"""

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from fs_jax import config
from fs_jax.data import pipeline, sources
from fs_jax.gallery import encode, exact
from fs_jax.machine import console, files, manifest, provenance
from fs_jax.runs import contract, layout, stages
from fs_jax.search import scorer as scorers

_AT_ONCE = 128  # clusters judged between two updates of the progress bar


def mine(
  run: stages.Run | None,
  captioned: sources.Source,
  uncaptioned: sources.Source | None,
  cfg: config.Config,
  folder: epath.Path,
) -> pipeline.Clusters:
  """Mines `distill.lists` clusters, or reads them if they were mined before.

  Args:
    run: a trained Fast; candidates "batch" need none.
    captioned: the training split.
    uncaptioned: more visuals, or None.
    cfg: the config of the stage that distils.
    folder: that stage's folder; lists go to clusters/ in it.

  Raises:
    ValueError: top_k clusters larger than the captioned split; damaged lists.
  """
  both = captioned
  if uncaptioned is not None:
    both = sources.join(captioned, uncaptioned)
  rng = np.random.default_rng([cfg.seed, 7])
  if cfg.distill.candidates == "batch":
    return _draw(len(captioned), both, cfg, rng)
  size = cfg.distill.cluster_size
  if size > len(captioned):
    raise ValueError(
      f"distill.cluster_size: must be at most the {len(captioned)} captioned "
      f"visuals of {cfg.data.train!r}; got {size}. give "
      f"--config.distill.cluster_size={len(captioned)} or less"
    )
  path = folder / layout.CLUSTERS
  assert run is not None  # the config names it for "top_k"
  parts = {**encode.make_contract(run, both), "config": contract.recipe(cfg)}
  if provenance.folder_needed(path, "clusters", parts):
    vectors = encode.encode_visuals(run, both)
    seeds = np.resize(np.arange(len(captioned)), cfg.distill.lists)
    seeds = rng.permutation(seeds)
    visual, _ = exact.find_nearest(vectors, vectors[seeds], size)
    text, _ = exact.find_nearest(
      vectors[: len(captioned)], vectors[seeds], size
    )
    with manifest.folder(path, "clusters") as temporary:
      files.write_array(temporary / "visual.npy", np.asarray(visual, "<i4"))
      files.write_array(temporary / "text.npy", np.asarray(text, "<i4"))
      manifest.write_manifest(
        temporary, {"kind": "clusters", "contract": parts}
      )
  return pipeline.Clusters(
    both,
    files.read_array(path / "visual.npy"),
    files.read_array(path / "text.npy"),
  )


def _draw(
  captioned: int,
  source: sources.Source,
  cfg: config.Config,
  rng: np.random.Generator,
) -> pipeline.Clusters:
  """Random clusters of `source`, whose first `captioned` visuals have texts.

  Half of a cluster's visuals are its captions' own, as in a batch of pairs.
  """
  size, lists = cfg.distill.cluster_size, cfg.distill.lists
  visual = rng.integers(len(source), size=(lists, size))
  text = rng.integers(captioned, size=(lists, size))
  visual[:, : size // 2] = text[:, : size // 2]
  return pipeline.Clusters(source, visual.astype("i4"), text.astype("i4"))


def judge(
  teacher: stages.Run,
  captioned: sources.Source,
  clusters: pipeline.Clusters,
  cfg: config.Config,
  folder: epath.Path,
) -> pipeline.Clusters:
  """Adds Slow's scores to clusters, read if they were judged before.

  Args:
    teacher: a trained Slow.
    captioned: the training split.
    clusters: mined clusters.
    cfg: the config of the stage that distils.
    folder: that stage's folder; scores go to judged/ in it.

  Raises:
    ValueError: damaged scores.
  """
  path = folder / layout.JUDGED
  tokens = pipeline.cluster_texts(captioned, teacher.tokenizer, cfg, clusters)
  lists = {"visual": clusters.visual, "text": clusters.text, "tokens": tokens}
  parts = {
    **encode.make_contract(teacher, clusters.source),
    "clusters": {"digest": contract.digest(lists)},
    "config": contract.recipe(cfg),
  }
  if provenance.folder_needed(path, "judged", parts):
    memories = folder / layout.JUDGED_MEMORIES
    h = _score(teacher, clusters, tokens, cfg.folder, memories)
    with manifest.folder(path, "judged") as temporary:
      files.write_array(temporary / "h.npy", h.astype("<f4"))
      manifest.write_manifest(temporary, {"kind": "judged", "contract": parts})
    memories.rmtree()
  return clusters._replace(judged=files.read_array(path / "h.npy"))


def _score(
  teacher: stages.Run,
  clusters: pipeline.Clusters,
  tokens: Int[np.ndarray, "C G L"],
  name: str,
  folder: epath.Path,
) -> Float[np.ndarray, "C G G"]:
  """Scores [clusters, captions, visuals]; memories stay in `folder`."""
  # Lists share visuals: each is encoded once.
  visuals, places = np.unique(clusters.visual, return_inverse=True)
  memories = encode.write_memories(
    teacher, sources.take(clusters.source, visuals), folder, stale="remake"
  )
  scorer = scorers.Scorer(teacher, memories)
  places = places.reshape(clusters.visual.shape)
  n, size = clusters.visual.shape
  h = np.empty((n, size, size), np.float32)
  with console.Bar(f"{name}: Slow judges clusters", n) as bar:
    for start in range(0, n, _AT_ONCE):
      some = slice(start, start + _AT_ONCE)
      rows = np.repeat(places[some], size, axis=0)
      text = tokens[some].reshape(len(rows), -1)
      h[some] = scorer(text, rows).reshape(-1, size, size)
      bar.advance(min(start + _AT_ONCE, n))
  return h
