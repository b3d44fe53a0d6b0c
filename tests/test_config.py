"""The schema refuses what cannot run; editing and JSON lose nothing."""

import ast
import dataclasses
import inspect
import re
import traceback

import jax
import ml_collections
import numpy as np
import pytest

from fs_jax import config, configdict, sizes
from fs_jax.train import tasks
from tests.support import synthetic


def data(**fields):
  return lambda: config.Data(**fields)


def slow(**fields):
  return lambda: synthetic.slow(**fields)


def train(**fields):
  return lambda: config.Train(**fields)


def whole(stage="fast", **fields):
  return lambda: synthetic.cfg(stage, **fields)


# What to build, the field that the error names, and the value it got.
REFUSED = [
  (data(image_size=0), "image_size", 0),
  (data(frames=0), "frames", 0),
  (data(captions_per_visual=0), "captions_per_visual", 0),
  (data(threads=0), "threads", 0),
  (data(std=(0.5, 0.0, 0.5)), "std", (0.5, 0.0, 0.5)),
  (lambda: config.Tokens(length=2), "length", 2),
  (lambda: config.Tokens(vocabulary=7), "vocabulary", 7),
  (lambda: synthetic.stack(heads=3), "heads", 3),
  (lambda: synthetic.stack(heads=0), "heads", 0),
  (lambda: synthetic.stack(0), "layers", 0),
  (lambda: synthetic.stack(width=0), "width", 0),
  (lambda: synthetic.stack(dropout=1.0), "dropout", 1.0),
  (lambda: synthetic.stack(dropout=-0.1), "dropout", -0.1),
  (lambda: config.Vision(synthetic.stack(), patch=0), "patch", 0),
  (lambda: config.Vision(synthetic.stack(), 8, stem=-1), "stem", -1),
  (lambda: config.Vision(synthetic.stack(), 6, stem=4), "stem", 4),
  (slow(levels=3), "levels", 3),
  (slow(levels=0), "levels", 0),
  (slow(decoder=synthetic.stack(1)), "decoder.layers", 1),
  (slow(levels=5, widths=(8,) * 4, decoder=synthetic.stack(5)), "levels", 5),
  (slow(finer_frames=0), "finer_frames", 0),
  (slow(text_layers=-1), "text_layers", -1),
  (slow(null_rate=1.0), "null_rate", 1.0),
  (lambda: config.Distill(cluster_size=0), "cluster_size", 0),
  (lambda: config.Distill(clusters=0), "clusters", 0),
  (lambda: config.Distill(lists=0), "lists", 0),
  (lambda: config.Distill(temperature=-1.0), "temperature", -1.0),
  (lambda: config.Weights(candidates=1), "candidates", 1),
  (train(steps=0), "steps", 0),
  (train(batch_size=0), "batch_size", 0),
  (train(log_every=0), "log_every", 0),
  (train(save_every=0), "save_every", 0),
  (train(keep=0), "keep", 0),
  (train(accumulate=0), "accumulate", 0),
  (train(batch_size=8, accumulate=3), "accumulate", 3),
  (train(keep_best=1), "keep_best", 0),
  (train(keep_best=1, eval_every=3, save_every=10), "keep_best", 3),
  (train(profile=(3,)), "profile", (3,)),
  (lambda: config.Optim(ema=1.0), "ema", 1.0),
  (lambda: config.Optim(cooldown=1.5), "cooldown", 1.5),
  (lambda: config.Optim(schedule="rsqrt", warmup=0), "warmup", 0),
  (lambda: config.Mesh(slices=0), "slices", 0),
  (
    lambda: config.Fast(
      synthetic.vision(), config.Text(synthetic.stack()), chunk=-1
    ),
    "chunk",
    -1,
  ),
  (
    lambda: config.Fast(
      synthetic.vision(), config.Text(synthetic.stack()), scale=-1.0
    ),
    "scale",
    -1.0,
  ),
  (lambda: config.Mesh(-1, -1, 1), "data, fsdp, model", (-1, -1, 1)),
  (lambda: config.Mesh(0, 1, 1), "data, fsdp, model", (0, 1, 1)),
  (whole("slow", slow=None), "slow", None),
  (whole(data={"image_size": 20}), "data.image_size", 20),
  (
    whole(
      "slow", slow=synthetic.slow(vision=config.Vision(synthetic.stack(), 32))
    ),
    "data.image_size",
    16,
  ),
  (whole("distill", init=config.Init("fast")), "init.teacher", ""),
  (whole("distill", init=config.Init(teacher="slow")), "init.stage", ""),
  (whole("slow", slow=synthetic.slow(loss="matching")), "init.teacher", ""),
]


@pytest.mark.parametrize(("make", "field", "got"), REFUSED)
def test_what_cannot_run_is_refused(make, field, got):
  with pytest.raises(ValueError) as error:
    make()
  # field: the rule; got value. what to change
  message = rf"{re.escape(field)}: .+; got {re.escape(repr(got))}\. .+"
  assert re.fullmatch(message, str(error.value))


def test_every_rule_of_the_schema_has_a_case_above():
  fired = set()
  for make, field, _ in REFUSED:
    try:
      make()
    except ValueError as error:
      frames = traceback.extract_tb(error.__traceback__)
      line = [f.lineno for f in frames if f.name == "__post_init__"][-1]
      fired |= {(line, field), (line, "")}
  rules = list(schema_rules())
  assert len(rules) > 30
  untested = [
    (lines.start, field)
    for lines, field in rules
    if not any((line, field) in fired for line in lines)
  ]
  assert not untested, f"config.py: no case makes these fire: {untested}"


def schema_rules():
  """(lines, field) of each rule; the field is "" where the message names it."""
  helpers = ("_at_least", "_below_one", "_divides")
  for function in ast.walk(ast.parse(inspect.getsource(config))):
    if getattr(function, "name", "") != "__post_init__":
      continue
    for call in ast.walk(function):
      name = getattr(getattr(call, "func", None), "id", "")
      if name == "_require":
        yield range(call.lineno, call.end_lineno + 1), ""
      elif name in helpers:
        words = [a.value for a in call.args if isinstance(a, ast.Constant)]
        fields = [word for word in words if isinstance(word, str)]
        for field in fields[:1] if name == "_divides" else fields:
          yield range(call.lineno, call.end_lineno + 1), field


@pytest.mark.parametrize(
  ("make", "mend"),
  [
    (lambda: synthetic.stack(heads=3), "use 2, or change width"),
    (lambda: synthetic.stack(heads=0), "use 1, or change width"),
    (train(batch_size=8, accumulate=7), "use 4, or change batch_size"),
    (whole(data={"image_size": 20}), "use 24, or another patch"),
    (data(frames=0), "use 1 or more"),
  ],
)
def test_the_value_to_use_instead_is_named(make, mend):
  with pytest.raises(ValueError, match=re.escape(mend)):
    make()


@pytest.mark.parametrize("stage", ["fast", "slow", "distill"])
def test_editing_and_json_lose_nothing(stage):
  cfg = synthetic.cfg(stage)
  assert configdict.parse(configdict.edit(cfg)) == cfg
  assert configdict.from_json(configdict.to_json(cfg)) == cfg
  hash(configdict.from_json(configdict.to_json(cfg)))  # lists became tuples


def test_a_field_can_be_edited_and_arrives():
  c = configdict.edit(synthetic.cfg("slow"))
  c.optim.learning_rate = 1.0
  c.slow.decoder.layers = 3
  c.mesh.rules = ((".*", ("data",)),)
  cfg = configdict.parse(c)
  assert cfg.optim.learning_rate == 1.0
  assert cfg.slow.groups == (1, 2)
  assert cfg.mesh.rules == ((".*", ("data",)),)


def test_a_new_key_is_refused_where_it_is_set():
  c = configdict.edit(synthetic.cfg())
  with pytest.raises(AttributeError, match="lerning_rate"):
    c.optim.lerning_rate = 1.0


def edited(path, value):
  values = dataclasses.asdict(synthetic.cfg("slow"))
  *groups, last = path.split(".")
  inner = values
  for group in groups:
    inner = inner[group]
  inner[last] = value
  return ml_collections.ConfigDict(values)


@pytest.mark.parametrize(
  ("path", "value", "place", "rule"),
  [
    ("optim.lr", 1.0, "config.optim", "learning_rate"),  # lists what there is
    ("train.steps", 2.5, "config.train.steps", "int"),
    ("train.steps", True, "config.train.steps", "int"),
    ("data.dir", 3, "config.data.dir", "str"),
    ("tokens.lowercase", 1, "config.tokens.lowercase", "bool"),
    ("optim.learning_rate", "1", "config.optim.learning_rate", "float"),
    ("data.mean", 0.5, "config.data.mean", "tuple"),
    ("data.mean", (0.5, 0.5), "config.data.mean", "3 items"),
    ("data.mean", (0.5, 0.5, "x"), "config.data.mean[2]", "float"),
    ("init.prefixes", (("a",),), "config.init.prefixes[0]", "2 items"),
    ("data.dataset", "laion", "config.data.dataset", "'scenes', 'emoji'"),
    ("slow.vision.pool", "max", "config.slow.vision.pool", "'map', 'mean'"),
    ("slow.vision", 3, "config.slow.vision", "group"),
    (
      "optim.name",
      "sgd",
      "config.optim.name",
      "'adamw', 'lion', 'adafactor', 'muon'",
    ),
    ("slow.decoder.heads", 3, "config.slow.decoder.heads", "must divide"),
  ],
)
def test_a_wrong_value_is_named_with_its_place(path, value, place, rule):
  with pytest.raises(ValueError) as error:
    configdict.parse(edited(path, value))
  message = str(error.value)
  assert message.startswith(place + ": ")
  assert rule in message
  got = path.split(".")[-1] if path == "optim.lr" else value
  assert (
    f"; got {got!r}" in message
    or f"; got {value[-1:]!r}" in message
    or (isinstance(value, tuple) and f"; got {value[-1]!r}" in message)
  )


def test_an_int_passes_for_a_float():
  cfg = configdict.parse(edited("optim.learning_rate", 1))
  assert type(cfg.optim.learning_rate) is float


@pytest.mark.parametrize(
  ("text", "rule"),
  [
    ("{", "must be JSON"),
    ("[]", "group of fields"),
    ("{}", "stage"),
    ('{"stage": "fast"}', "fast"),
    ('{"stage": "fast", "fast": {"embed": 8}}', "vision"),
  ],
)
def test_json_of_something_else_is_refused(text, rule):
  with pytest.raises(ValueError, match=rule):
    configdict.from_json(text)


def test_differences_name_fields_of_any_depth():
  a = synthetic.cfg("slow")
  b = synthetic.cfg("slow", optim={"warmup": 9}, slow={"d_mem": 4}, seed=1)
  assert configdict.differences(a, a) == []
  assert configdict.differences(a, b) == [
    "optim.warmup: 2 != 9",
    "seed: 0 != 1",
    "slow.d_mem: 8 != 4",
  ]
  assert "slow: None != None" not in configdict.differences(synthetic.cfg(), a)
  assert any(
    d.startswith("slow.d_mem: None")
    for d in configdict.differences(synthetic.cfg(), a)
  )


def test_a_scale_of_its_loss_is_the_number_that_it_was():
  """Stages were written down with 14.0, whatever their loss."""
  with_number = lambda fast: configdict.from_json(
    configdict.to_json(synthetic.cfg(fast={"scale": 14.0} | fast))
  )
  assert with_number({}).fast.first_scale == 14
  assert configdict.differences(with_number({}), synthetic.cfg()) == []
  sigmoid = {"loss": "sigmoid"}
  assert with_number(sigmoid).fast.first_scale == 14
  assert configdict.differences(
    with_number(sigmoid), synthetic.cfg(fast=sigmoid)
  ) == ["fast.scale: 14.0 != 10.0"]


def test_finer_levels_get_the_layers_left_over():
  slow = synthetic.slow(
    levels=3,
    widths=(8, 8),
    decoder=synthetic.stack(8),
    vision=synthetic.vision(),
  )
  assert slow.groups == (2, 3, 3)
  assert synthetic.slow(levels=1, decoder=synthetic.stack(5)).groups == (5,)


def test_a_level_doubles_rows_and_columns_and_finer_ones_keep_fewer_frames():
  vision = dataclasses.replace(synthetic.vision(), patch=8)
  slow = synthetic.slow(
    levels=3,
    widths=(8, 8),
    decoder=synthetic.stack(3),
    vision=vision,
    finer_frames=2,
  )
  assert slow.grids(32, 5) == ((5, 4, 4), (3, 8, 8), (3, 16, 16))


@pytest.mark.parametrize("name", [*sizes.VISION])
def test_usual_sizes_hold_together(name):
  vision = sizes.VISION[name]
  if "/" in name:
    assert vision.patch == int(name.split("/")[1])
  assert vision.stack.hidden == 4 * vision.stack.width


@pytest.mark.parametrize(
  ("loss", "start"), [("softmax", 14.0), ("sigmoid", 10.0)]
)
def test_the_scale_starts_where_the_loss_wants_it(loss, start):
  c = configdict.edit(synthetic.cfg())
  c.fast.loss = loss
  cfg = configdict.parse(c)
  assert cfg.fast.first_scale == start
  params = tasks.make(cfg, synthetic.VOCABULARY).init(jax.random.key(0))
  first = np.exp(params["fast"]["log_scale"])
  np.testing.assert_allclose(first, start, rtol=1e-6)
  c.fast.scale = 12.0
  assert configdict.parse(c).fast.first_scale == 12.0
