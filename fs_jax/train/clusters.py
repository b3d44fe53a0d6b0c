"""Candidate lists for the teacher: visuals that Fast confuses.

A cluster is the G visuals nearest to a captioned one by Fast's own vectors,
captioned or not, with the captions of the G nearest captioned ones. Slow then
says which of them each caption explains: that is what Fast has to learn.
"""

import numpy as np
from etils import epath

from fs_jax import config
from fs_jax.data import pipeline, sources
from fs_jax.gallery import encode, exact
from fs_jax.machine import console, files, manifest, provenance
from fs_jax.runs import contract, layout, stages
from fs_jax.search import scorer as scorers

JUDGED = 128  # lists between two words of progress


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
    cfg: of the stage that distils.
    folder: of that stage; lists go to clusters/ in it.

  Raises:
    ValueError: top_k clusters larger than the captioned split; damaged lists.
  """
  both = captioned
  if uncaptioned is not None:
    both = sources.join(captioned, uncaptioned)
  size, lists = cfg.distill.cluster_size, cfg.distill.lists
  rng = np.random.default_rng([cfg.seed, 7])
  if cfg.distill.candidates == "batch":
    visual = rng.integers(len(both), size=(lists, size))
    text = rng.integers(len(captioned), size=(lists, size))
    # Own pictures among the candidates, as a batch of pairs would have them.
    visual[:, : size // 2] = text[:, : size // 2]
    return pipeline.Clusters(both, visual.astype(np.int32), text.astype("i4"))
  if size > len(captioned):
    raise ValueError(
      f"distill.cluster_size: must be at most the {len(captioned)} captioned "
      f"visuals of {cfg.data.train!r}; got {size}. lower it"
    )
  path = folder / layout.CLUSTERS
  assert run is not None  # the config names it for "top_k"
  parts = {**encode.make_contract(run, both), "config": contract.recipe(cfg)}
  if provenance.folder_needed(path, "clusters", parts):
    vectors = encode.encode_visuals(run, both)
    seeds = rng.permutation(np.resize(np.arange(len(captioned)), lists))
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


def judge(
  teacher: stages.Run,
  captioned: sources.Source,
  found: pipeline.Clusters,
  cfg: config.Config,
  folder: epath.Path,
) -> pipeline.Clusters:
  """The same clusters with what Slow says of them, read if it was said before.

  Args:
    teacher: a trained Slow.
    captioned: the training split.
    found: mined clusters.
    cfg: of the stage that distils.
    folder: of that stage; scores go to judged/ in it.

  Raises:
    ValueError: damaged scores.
  """
  path = folder / layout.JUDGED
  tokens = pipeline.cluster_texts(captioned, teacher.tokenizer, cfg, found)
  lists = {"visual": found.visual, "text": found.text, "tokens": tokens}
  parts = {
    **encode.make_contract(teacher, found.source),
    "clusters": {"digest": contract.digest(lists)},
    "config": contract.recipe(cfg),
  }
  if provenance.folder_needed(path, "judged", parts):
    # Lists share visuals: each is encoded once.
    shown, places = np.unique(found.visual, return_inverse=True)
    kept = folder / layout.JUDGED_MEMORIES
    memories = encode.write_memories(
      teacher, sources.take(found.source, shown), kept, stale="remake"
    )
    scorer = scorers.Scorer(teacher, memories)
    places = places.reshape(found.visual.shape)
    n, size = found.visual.shape
    h = np.empty((n, size, size), np.float32)
    with console.Bar(f"{cfg.folder}: Slow judges clusters", n) as bar:
      for start in range(0, n, JUDGED):
        some = slice(start, start + JUDGED)
        rows = np.repeat(places[some], size, axis=0)
        text = tokens[some].reshape(len(rows), -1)
        h[some] = scorer(text, rows).reshape(-1, size, size)
        bar.advance(min(start + JUDGED, n))
    with manifest.folder(path, "judged") as temporary:
      files.write_array(temporary / "h.npy", h.astype("<f4"))
      manifest.write_manifest(temporary, {"kind": "judged", "contract": parts})
    kept.rmtree()
  return found._replace(judged=files.read_array(path / "h.npy"))
