"""A stage begins from what fits it, or from nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from fs_jax import config
from fs_jax.data import tokenizer as tokenizers
from fs_jax.runs import contract, stages
from fs_jax.train import lineage, tasks
from tests.support import synthetic

WORDS = " ".join(map(str, range(synthetic.VOCABULARY - 4)))


def run_of(stage, words=WORDS, **fields):
  cfg = synthetic.cfg(stage, **fields)
  tokenizer = tokenizers.train([words], cfg.tokens)
  shapes = jax.eval_shape(
    tasks.make(cfg, tokenizer.vocab_size).init, jax.random.key(0)
  )
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
  return stages.Run(epath.Path(f"W/{stage}"), cfg, tokenizer, params, 1)


@pytest.fixture(scope="module")
def fast():
  return run_of("fast")


@pytest.fixture(scope="module")
def slow():
  return run_of("slow")


def test_what_a_stage_began_from_is_named_by_its_role(fast, slow):
  made_from = lineage.check(synthetic.cfg("distill"), fast, slow)
  assert list(made_from) == [
    *("stage_fast", "stage_fast_config"),
    *("teacher_slow", "teacher_slow_config"),
  ]
  assert made_from["teacher_slow"] == slow.slow_contract
  assert lineage.check(synthetic.cfg("fast"), None, None) == {}


# Every input, and every kind of size: (changed config, what the error names).
CHANGES = [
  ({"data": {"image_size": 8}}, "data.image_size"),
  ({"data": {"resize": "crop"}}, "data.resize"),
  ({"data": {"mean": (0.1, 0.5, 0.5)}}, "data.mean"),
  ({"data": {"std": (0.1, 0.5, 0.5)}}, "data.std"),
  ({"data": {"frames": 2}}, "data.frames"),
  ({"tokens": {"kind": "bpe"}}, "tokens.kind"),
  ({"tokens": {"phrases": 3}}, "tokens.phrases"),
  ({"tokens": {"vocabulary": 99}}, "tokens.vocabulary"),
  ({"tokens": {"length": 9}}, "tokens.length"),
  ({"tokens": {"lowercase": False}}, "tokens.lowercase"),
]


def test_every_input_has_a_case():
  assert {field for _, field in CHANGES} == set(contract.INPUTS)


@pytest.mark.parametrize(("change", "field"), CHANGES)
@pytest.mark.parametrize("role", ["stage", "teacher"])
def test_inputs_that_differ_are_refused_with_their_mend(
  fast, slow, change, field, role
):
  cfg = synthetic.cfg("distill", **change)
  donor, teacher = (fast, None) if role == "stage" else (None, slow)
  with pytest.raises(ValueError) as error:
    lineage.check(cfg, donor, teacher)
  said = str(error.value)
  assert said.startswith(f"{field}: stage 'distill' and its init.{role} ")
  want = contract.recipe(synthetic.cfg("distill"))[field]
  assert said.endswith(contract.flag(field, want))


@pytest.mark.parametrize(
  ("fields", "field"),
  [
    ({"d_mem": 16}, "slow.d_mem"),
    ({"levels": 1}, "slow.levels"),
    ({"decoder": synthetic.stack(2, heads=4)}, "slow.decoder.heads"),
    ({"vision": synthetic.vision("mean")}, "slow.vision.pool"),
    ({"separate_directions": True}, "slow.separate_directions"),
  ],
)
def test_a_teacher_has_the_sizes_that_the_config_says(slow, fields, field):
  cfg = synthetic.cfg("distill", slow=synthetic.slow(**fields))
  with pytest.raises(ValueError, match=rf"^{field}: .*--config\.{field}="):
    lineage.check(cfg, None, slow)


def test_what_only_training_knows_may_differ(fast, slow):
  cfg = synthetic.cfg(
    "distill",
    slow=synthetic.slow(null_rate=0.3, decoder=synthetic.stack(2, dropout=0.1)),
  )
  fields = {"loss": "sigmoid", "chunk": 4}
  cfg = dataclasses.replace(cfg, fast=dataclasses.replace(cfg.fast, **fields))
  lineage.check(cfg, fast, slow)


def test_hard_negatives_come_from_a_fast_of_the_sizes_said(fast):
  cfg = synthetic.cfg(
    "slow",
    slow=synthetic.slow(loss="matching"),
    init=config.Init(teacher="fast"),
  )
  lineage.check(cfg, None, fast)
  other = dataclasses.replace(cfg, fast=dataclasses.replace(cfg.fast, embed=16))
  with pytest.raises(ValueError, match=r"^fast\.embed: .*init\.teacher 'fast'"):
    lineage.check(other, None, fast)


def test_a_donor_has_the_sizes_of_what_it_gives(fast):
  init = config.Init("fast", (("fast/vision/", "slow/encoder/vision/"),))
  lineage.check(synthetic.cfg("slow", init=init), fast, None)
  vision = synthetic.vision(layers=2)
  cfg = synthetic.cfg("slow", init=init, slow=synthetic.slow(vision=vision))
  with pytest.raises(ValueError, match=r"^slow\.vision\.stack\.layers: "):
    lineage.check(cfg, fast, None)


def test_one_vocabulary(fast, slow, tmp_path):
  other = run_of("slow", words=WORDS.replace("7", "x"))
  with pytest.raises(ValueError, match=r"^tokenizer: .*one vocabulary"):
    lineage.check(synthetic.cfg("distill"), fast, other)
  other.tokenizer.save(tmp_path / "t.json")
  cfg = synthetic.cfg("distill", tokens={"file": str(tmp_path / "t.json")})
  with pytest.raises(ValueError, match=r"^tokens\.file: .*leave the file out"):
    lineage.check(cfg, fast, slow)
  adopted = tokenizers.make((), cfg.tokens)
  lineage.check(cfg, *(x._replace(tokenizer=adopted) for x in (fast, slow)))


@pytest.mark.parametrize(
  ("spread", "says"),
  [(0.0, "says nothing. lower"), (1e3, "than a label. raise"), (2.0, "")],
)
def test_a_teacher_that_says_nothing_is_named(capsys, spread, says):
  h = spread * np.random.default_rng(0).normal(size=(50, 4))
  cfg = synthetic.cfg("distill")
  entropy = lineage.check_entropy(cfg, h, np.full(50, 4), 0.5, 1.0)
  said = capsys.readouterr().err
  assert f"{entropy:.3f} nats of at most log 4 = 1.386" in said
  assert says in said
  assert ("--config.distill.temperature" in said) == bool(says)
  assert ("init.teacher" in said or "'slow'" in said) == bool(says)
