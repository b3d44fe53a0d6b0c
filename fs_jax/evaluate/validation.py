"""A quick recall on a validation sample while a stage trains."""

from collections.abc import Callable, Mapping

import numpy as np

from fs_jax import config, types
from fs_jax.data import sources
from fs_jax.data import tokenizer as tokenizers
from fs_jax.evaluate import metrics
from fs_jax.machine import sharding
from fs_jax.train import pair_scores


def quick_recall(
  cfg: config.Config, tokenizer: tokenizers.Tokenizer
) -> Callable[[types.Params], Mapping[str, float]]:
  """Returns a function: params -> R@1 and R@5 on a validation sample.

  The sample is the first `train.eval_sample` visuals, with one caption each,
  ranked among the sample only: a curve to watch, not a result. Slow scores all
  pairs of a quarter of them. The sample is decoded once and scored in blocks
  that fit where training does (`pair_scores`).
  """
  source = sources.open_lazily(cfg.data, cfg.data.validation)
  mesh = sharding.mesh(cfg.mesh)
  size = min(pair_scores.sample_size(cfg), len(source))
  if cfg.stage == "slow":  # a quarter, even if there are fewer visuals
    size = min(size, max(len(source) // 4, 1))
  program = pair_scores.program(cfg, tokenizer.vocab_size, mesh, size)
  texts = tokenizer.encode([source.captions(i)[0] for i in range(size)])
  visual = source.visuals(np.arange(size))

  def recall(params: types.Params) -> dict[str, float]:
    scores = pair_scores.scores(program, params, visual, texts)
    ranked = metrics.ranks_full(scores, np.arange(size)[:, None])
    return {
      f"R@{k}": float(metrics.recall_at(ranked, k).mean()) for k in (1, 5)
    }

  return recall
