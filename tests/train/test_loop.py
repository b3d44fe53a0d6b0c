"""The loop: a run that was killed ends as one that was not.

python -m tests.test_loop WORKDIR STEP trains and kills itself at a step.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from fs_jax import config, types
from fs_jax.data import tokenizer as tokenizers
from fs_jax.machine import errors
from fs_jax.runs import checkpoint, journal, layout, stages
from fs_jax.train import loop, tasks
from fs_jax.train import step as steps
from tests.support import synthetic

STEPS, BATCH = 8, 4
ONE = jax.devices()[:1]


def toy(cfg=None, vocabulary=0, mesh=None):
  """Regression with noise of its own: compiles in no time."""
  del cfg, vocabulary, mesh

  def init(key):
    kernel = jax.random.normal(key, (3, 2))
    return {"fast": {"a": {"kernel": kernel, "embedding": jnp.zeros(2)}}}

  def rows(trained, frozen, batch, key):
    a = trained["fast"]["a"]
    noise = jax.random.normal(key, batch["y"].shape)
    y = batch["x"] @ a["kernel"] + a["embedding"][None]
    return (y - batch["y"] + 0.1 * noise) ** 2

  def loss(trained, error, batch):
    # Fails on demand: a loss, or a gradient of a finite loss.
    own = trained["fast"]["a"]["embedding"]
    zero, spoil = own - jax.lax.stop_gradient(own), batch["spoil"].max()
    spoilt = jnp.sqrt(spoil * zero**2 + 1 - spoil).sum()
    total = error.mean() + batch["nan"].sum() + spoilt
    return total, {"extra": error.max()}

  return types.Task(init, rows, loss, lambda batch: (BATCH, BATCH))


def shapes(cfg):
  of = lambda *shape: jax.ShapeDtypeStruct((BATCH, *shape), np.float32)
  return {"x": of(3), "y": of(2), "nan": of(), "spoil": of()}


def batches(start, rows, *, nan_at=-1, spoil_at=-1, die_at=-1, die=None):
  """Dies on its way to a batch, two of which are made ahead of their use."""
  assert rows == (slice(0, BATCH),)
  step = start
  while True:
    if step == die_at:
      die()
    rng = np.random.default_rng(step)
    yield {
      "x": rng.normal(size=(BATCH, 3)).astype(np.float32),
      "y": rng.normal(size=(BATCH, 2)).astype(np.float32),
      "nan": np.full(BATCH, np.nan if step == nan_at else 0, np.float32),
      "spoil": np.full(BATCH, step == spoil_at, np.float32),
    }
    step += 1


def cfg_of(**train):
  values = {"steps": STEPS, "batch_size": BATCH, "log_every": 2}
  values |= {"save_every": 2, "keep": 3}
  cfg = synthetic.cfg(train=config.Train(**values | train))
  optim = config.Optim(learning_rate=0.1, warmup=2)
  mesh = config.Mesh(rules=((".*", ()),))
  return dataclasses.replace(cfg, optim=optim, mesh=mesh)


def fit(
  workdir, cfg=None, *, validate=None, text="a b", start_from=None, **how
):
  cfg = cfg or cfg_of()
  tokenizer = tokenizers.train([text], cfg.tokens)
  with (
    mock.patch.object(tasks, "make", toy),
    mock.patch.object(tasks, "batch_shapes", shapes),
  ):
    return loop.fit(
      cfg,
      workdir,
      tokenizer,
      lambda start, rows: batches(start, rows, **how),
      validate=validate,
      start_from=start_from,
      devices=ONE,
    )


def lines(workdir):
  """metrics.jsonl without what a clock put there."""
  return [
    {k: v for k, v in line.items() if k not in synthetic.CLOCKED}
    for line in journal.read(workdir / "fast")
    if line["split"] != journal.START
  ]


def saved_steps(workdir):
  folder = workdir / "fast" / "checkpoints"
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


class Killed(Exception):
  pass


def killed():
  raise Killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nobody disturbed, and its last state."""
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, fit(workdir)


def test_a_run_leaves_its_folder(whole):
  workdir, state = whole
  folder = workdir / "fast"
  assert int(state.step) == STEPS
  assert saved_steps(workdir) == [4, 6, 8]  # the newest three
  assert [line["step"] for line in lines(workdir)] == [2, 4, 6, 8]
  assert json.loads((folder / "DONE").read_text())["step"] == STEPS
  assert stages.read_config(folder) == cfg_of()
  losses = [line["loss"] for line in lines(workdir)]
  assert losses[-1] != losses[0]
  assert {"loss", "grad_norm", "extra"} <= lines(workdir)[0].keys()


def test_a_workdir_may_lie_in_a_store(whole, tmp_path, bucket):
  """All but the arrays, which orbax's own driver takes to a real one.

  Killed between two uploads, it has every line up to its checkpoint.
  """
  real, where = checkpoint.Checkpoints, epath.Path("gs://bucket/runs/x")
  close, left = journal.Journal.close, []

  def here(folder, *rest):
    assert os.fspath(folder) == "gs://bucket/runs/x/fast/checkpoints"
    return real(tmp_path / "checkpoints", *rest)

  with mock.patch.object(checkpoint, "Checkpoints", here):
    with (
      mock.patch.object(
        journal.Journal, "close", lambda self: left.append(self)
      ),
      pytest.raises(Killed),
    ):
      fit(where, die_at=6, die=killed)
    assert [line["step"] for line in lines(where)] == [2, 4]
    state = fit(where)
  workdir, want = whole
  assert_same(state, want)
  assert lines(where) == lines(workdir)
  for name in ("DONE", "config.json", "tokenizer.json", layout.PARAMETERS):
    assert (where / "fast" / name).exists()
  assert list((where / "fast" / "tb").iterdir())
  close(*left)


def test_metrics_are_means_of_the_steps_since_the_last_line(whole, tmp_path):
  workdir, _ = whole
  fit(tmp_path, cfg_of(log_every=1))
  each = [line["loss"] for line in lines(tmp_path)]
  pairs = [np.mean(each[i : i + 2]) for i in range(0, STEPS, 2)]
  got = [line["loss"] for line in lines(workdir)]
  np.testing.assert_allclose(got, pairs, rtol=1e-5)


def test_no_step_waits_for_the_one_before(tmp_path):
  """Only whole windows are read, and with a step on its way."""
  started, read = 0, []
  compiled, array = steps.compile_step, type(jnp.zeros(()))
  value = array._value.fget

  def counting(*args):
    step = compiled(*args)

    def one(*args):
      nonlocal started
      started += 1
      return step(*args)

    return one

  def reads(self):
    read.append(started)
    return value(self)

  with (
    mock.patch.object(steps, "compile_step", counting),
    mock.patch.object(array, "_value", property(reads)),
  ):
    state = fit(tmp_path, cfg_of(log_every=3, save_every=100))
    float(state.step)
  # Steps 1 to 3 are read after the fourth has begun, 4 to 6 after the seventh.
  assert set(read) - {0} == {4, 7, STEPS}


def test_a_finished_run_is_left_alone(whole):
  workdir, state = whole
  before = (workdir / "fast" / "metrics.jsonl").read_bytes()
  again = fit(workdir, die_at=STEPS, die=killed)  # asks for no batch
  assert_same(state, again)
  assert (workdir / "fast" / "metrics.jsonl").read_bytes() == before


@pytest.mark.bitwise
@pytest.mark.parametrize("at", [1, 5, 8])
def test_a_killed_run_ends_as_an_undisturbed_one(whole, tmp_path, at):
  undisturbed, want = whole
  with pytest.raises(Killed):
    fit(tmp_path, die_at=at, die=killed)
  assert not stages.is_finished(tmp_path / "fast")
  got = fit(tmp_path)
  assert_same(want, got)  # with the optimiser, bit for bit
  assert lines(tmp_path) == lines(undisturbed)
  assert saved_steps(tmp_path) == saved_steps(undisturbed)


def test_resuming_continues_the_optimiser(whole, tmp_path):
  """What the test above would miss if moments and noise did not matter."""
  _, want = whole
  with pytest.raises(Killed):
    fit(tmp_path, die_at=6, die=killed)
  zeros = lambda self, step, like: RESTORE(self, step, like)._replace(
    opt_state=jax.tree.map(jnp.zeros_like, like.opt_state)
  )
  with mock.patch.object(checkpoint.Checkpoints, "restore", zeros):
    got = fit(tmp_path)
  kernels = [s.params["fast"]["a"]["kernel"] for s in (want, got)]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


RESTORE = checkpoint.Checkpoints.restore


@pytest.mark.slow
@pytest.mark.bitwise
def test_a_run_killed_by_the_system_goes_on(whole, tmp_path):
  undisturbed, want = whole
  done = subprocess.run(
    [sys.executable, "-m", "tests.train.test_loop", str(tmp_path), "8"],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    timeout=120,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
  steps = saved_steps(tmp_path)
  assert steps and max(steps) < STEPS
  # Besides a last line cut short, as if the kill came while it was written.
  with open(tmp_path / "fast" / "metrics.jsonl", "a") as file:
    file.write('{"step": 6, "ti')
  assert_same(want, fit(tmp_path))
  assert lines(tmp_path) == lines(undisturbed)


@pytest.mark.bitwise
def test_told_to_stop_it_saves_and_goes_on_as_if_nothing_was(whole, tmp_path):
  undisturbed, want = whole
  stop = lambda: os.kill(os.getpid(), signal.SIGTERM)
  before = signal.getsignal(signal.SIGTERM)
  cfg = cfg_of(save_every=100)
  with pytest.raises(errors.Preempted):
    fit(tmp_path, cfg, die_at=5, die=stop)
  assert signal.getsignal(signal.SIGTERM) == before
  assert saved_steps(tmp_path) == [5]  # heard on the way to it, kept after it
  assert not stages.is_finished(tmp_path / "fast")
  assert_same(want, fit(tmp_path))
  assert lines(tmp_path) == lines(undisturbed)


def test_the_mesh_and_the_pace_may_change(whole, tmp_path):
  _, want = whole
  with pytest.raises(Killed):
    fit(tmp_path, cfg_of(save_every=1), die_at=5, die=killed)
  cfg = cfg_of(save_every=4, log_every=3, keep=1)
  mesh = dataclasses.replace(cfg.mesh, data=1, topology="v5e:2x4")
  cfg = dataclasses.replace(cfg, mesh=mesh)
  assert_same(want, fit(tmp_path, cfg))
  assert stages.read_config(tmp_path / "fast") == cfg


def test_a_running_mean_follows_and_is_what_programs_read(tmp_path):
  cfg = cfg_of(save_every=1, keep=STEPS)
  cfg = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, ema=0.75))
  seen = []

  def validate(params):
    seen.append(np.asarray(params["fast"]["a"]["kernel"]))
    return {"R@1": 0.0}

  train = dataclasses.replace(cfg.train, eval_every=1)
  cfg = dataclasses.replace(cfg, train=train)
  state = fit(tmp_path, cfg, validate=validate)
  assert len(seen) == STEPS
  kernels = [
    np.asarray(restored(tmp_path, cfg, step).params["fast"]["a"]["kernel"])
    for step in range(1, STEPS + 1)
  ]
  mean = seen[0]
  for step, kernel in enumerate(kernels[1:], start=1):
    heard, kept = seen[step], min(0.75, (1 + step) / (10 + step))
    mean = kept * mean + (1 - kept) * kernel
    np.testing.assert_allclose(heard, mean, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(state.ema["fast"]["a"]["kernel"], seen[-1])
  assert np.abs(seen[-1] - kernels[-1]).max() > 1e-3


def restored(workdir, cfg, step):
  """The state that was saved after a step."""
  with (
    mock.patch.object(tasks, "make", toy),
    mock.patch.object(tasks, "batch_shapes", shapes),
  ):
    made = steps.program(cfg, 5, loop.sharding.mesh(cfg.mesh, ONE), {})
  saved = checkpoint.Checkpoints(workdir / "fast" / "checkpoints", cfg.train)
  return saved.restore(step, made.state)


def test_steps_are_traced_when_asked_for(tmp_path):
  fit(tmp_path, cfg_of(profile=(3, 4)))
  traced = list((tmp_path / "fast" / "profile").rglob("*.xplane.pb"))
  assert len(traced) == 1
  ask = lambda: os.kill(os.getpid(), signal.SIGUSR1)
  other = tmp_path / "signal"
  fit(other, die_at=4, die=ask)
  assert list((other / "fast" / "profile").rglob("*.xplane.pb"))


def test_parameters_are_listed_with_their_places(whole):
  workdir, _ = whole
  listed = (workdir / "fast" / layout.PARAMETERS).read_text()
  assert "fast/a/kernel" in listed and "(3, 2)" in listed


def test_every_step_draws_anew_and_every_seed_otherwise():
  task = toy()
  batch = next(batches(0, (slice(0, BATCH),)))
  still = optax.sgd(0.0)
  params = task.init(jax.random.key(0))

  def losses(seed, start):
    cfg = dataclasses.replace(cfg_of(), seed=seed)
    step = jax.jit(steps.make_train_step(cfg, task, still))
    state = types.TrainState(jnp.int32(start), params, still.init(params))
    found = []
    for _ in range(3):
      state, metrics = step(state, {}, batch)
      found.append(float(metrics["loss"]))
    return found

  first = losses(0, 0)
  assert len({*first, *losses(1, 0)}) == 6
  assert losses(0, 1)[:2] == first[1:]  # of the step, not of what came before


def test_lines_past_the_checkpoint_are_written_again(tmp_path):
  cfg = cfg_of(log_every=1, save_every=4)
  with pytest.raises(Killed):
    fit(tmp_path, cfg, die_at=8, die=killed)
  assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
  assert saved_steps(tmp_path) == [4]
  fit(tmp_path, cfg)
  steps = [line["step"] for line in lines(tmp_path)]
  assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize("save_every", [1, 3])
@pytest.mark.parametrize("how", ["nan_at", "spoil_at"])
def test_what_is_not_finite_stops_the_run(tmp_path, how, save_every):
  """Before it is saved, whether or not its window was due to be written."""
  cfg = cfg_of(log_every=4, save_every=save_every)
  bad = 5 if how == "nan_at" else 4  # batch of that number, from 0
  with pytest.raises(errors.NonFinite, match="must stay finite; got nan") as e:
    fit(tmp_path, cfg, **{how: bad})
  first, last = map(
    int, str(e.value).split(" in steps ")[1].split(".")[0].split(" to ")
  )
  assert first <= bad + 1 <= last <= first + 3
  good = max(saved_steps(tmp_path))
  assert good == bad // save_every * save_every
  assert not stages.is_finished(tmp_path / "fast")
  assert all(np.isfinite(line["loss"]) for line in lines(tmp_path))
  state = fit(tmp_path, cfg)  # from there, on better data
  assert int(state.step) == STEPS
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_a_changed_config_is_refused_with_its_fields(whole):
  workdir, _ = whole
  cfg = dataclasses.replace(cfg_of(), seed=3)
  cfg = dataclasses.replace(cfg, train=config.Train(batch_size=8))
  with pytest.raises(ValueError) as error:
    fit(workdir, cfg)
  said = str(error.value)
  assert "seed: 0 != 3" in said
  assert "train.batch_size: 4 != 8" in said
  assert "choose another --workdir" in said


def test_another_vocabulary_is_refused(whole):
  workdir, _ = whole
  with pytest.raises(ValueError, match="vocabulary it began with"):
    fit(workdir, text="other words")


def test_a_batch_that_does_not_split_is_refused_before_anything(tmp_path):
  cfg = cfg_of(batch_size=6)
  tokenizer = tokenizers.train(["a"], cfg.tokens)
  with pytest.raises(ValueError, match="multiple of 8"):
    loop.fit(cfg, tmp_path, tokenizer, batches)
  cfg = synthetic.cfg("distill", distill={"cluster_size": 3})
  with pytest.raises(ValueError, match="cluster_size"):
    loop.fit(cfg, tmp_path, tokenizer, batches)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "wrong",
  [
    {"optim": config.Optim(freeze=("nobody",))},
    {"mesh": config.Mesh(rules=(("nobody", ()), (".*", ())))},
    {"mesh": config.Mesh(3, rules=((".*", ()),))},
  ],
)
def test_a_wrong_config_leaves_no_folder(tmp_path, wrong):
  """It would hold on to that config: the mended one would be refused."""
  with pytest.raises(ValueError, match=r"nobody|devices"):
    fit(tmp_path, dataclasses.replace(cfg_of(), **wrong))
  assert not (tmp_path / "fast").exists()


def test_validation_is_heard_when_due(tmp_path):
  seen = []

  def validate(params):
    seen.append(np.asarray(params["fast"]["a"]["kernel"]))
    return {"R@1": 0.5}

  state = fit(tmp_path, cfg_of(eval_every=3), validate=validate)
  found = [x for x in lines(tmp_path) if x["split"] == "validation"]
  assert len(seen) == 3
  assert found == [
    {"step": s, "split": "validation", "R@1": 0.5} for s in (3, 6, 8)
  ]
  np.testing.assert_array_equal(seen[-1], state.params["fast"]["a"]["kernel"])
  steps = [line["step"] for line in lines(tmp_path)]
  assert steps == sorted(steps)


def test_first_parameters_come_from_a_donor(tmp_path):
  donor = {"fast": {"a": {"kernel": np.full((3, 2), 7.0, np.float32)}}}
  with pytest.raises(Killed):
    fit(tmp_path, start_from=donor, die_at=0, die=killed)
  params = {"fast": {"a": {"kernel": jnp.zeros((3, 2)), "b": jnp.ones(2)}}}
  got = steps.inherit(params, donor)["fast"]["a"]
  assert (got["kernel"] == 7).all()
  assert (got["b"] == 1).all()
  for bad in ({"kernel": np.zeros((3, 3))}, {"c": np.zeros(1)}):
    with pytest.raises(ValueError, match=r"init\.prefixes: 'fast/a/"):
      steps.inherit(params, {"fast": {"a": bad}})


if __name__ == "__main__":
  fit(
    pathlib.Path(sys.argv[1]),
    die_at=int(sys.argv[2]),
    die=lambda: os.kill(os.getpid(), signal.SIGKILL),
  )
