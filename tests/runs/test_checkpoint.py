"""What comes back is what was saved, wherever it is laid out."""

import pathlib
import resource
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fs_jax import config, types
from fs_jax.runs import checkpoint

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state_of(step, seed=0):
  rng = np.random.default_rng(seed)
  params = {
    "a": {"kernel": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)},
    "b": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
  }
  opt_state = optax.adam(0.1).init(params)
  opt_state = jax.tree.map(lambda x: x + rng.integers(1, 9), opt_state)
  return types.TrainState(jnp.int32(step), params, opt_state)


def like(state, sharding=ONE):
  return checkpoint.abstract(state, jax.tree.map(lambda _: sharding, state))


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
  jax.tree.map(lambda x, y: x.dtype == y.dtype or pytest.fail("dtype"), a, b)


def written(folder, *steps, keep=5):
  writer = checkpoint.Checkpoints(str(folder), config.Train(keep=keep))
  for step in steps:
    writer.save(state_of(step, step))
  writer.wait()
  writer.close()


def saved(folder, *steps, keep=5):
  written(folder, *steps, keep=keep)
  return checkpoint.Checkpoints(str(folder), config.Train(keep=keep))


def steps_in(folder):
  return sorted(int(p.name) for p in pathlib.Path(folder).iterdir())


def test_what_was_saved_comes_back(tmp_path):
  found = saved(tmp_path, 2, 4)
  assert found.latest() == 4
  for step in (2, 4):
    state = state_of(step, step)
    assert_same(found.restore(step, like(state)), state)
    assert_same(found.params(step, like(state).params), state.params)


def test_nothing_saved_is_none(tmp_path):
  assert checkpoint.Checkpoints(str(tmp_path / "new")).latest() is None


def test_the_newest_are_kept(tmp_path):
  found = saved(tmp_path, 1, 2, 3, 4, keep=2)
  assert found.latest() == 4
  assert steps_in(tmp_path) == [3, 4]


def test_every_nth_and_the_best_are_kept_beside_the_newest(tmp_path):
  train = config.Train(
    keep=1, keep_every=4, keep_best=1, eval_every=1, save_every=1
  )
  found = checkpoint.Checkpoints(str(tmp_path), train)
  scores = {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.2, 5: 0.4, 6: 0.5}
  for step, score in scores.items():
    found.save(state_of(step, step), {"R@1": score, "R@5": 0.9})
    found.wait()
  assert [s for s in steps_in(tmp_path)] == [2, 4, 6]
  assert (found.best(), found.latest()) == (2, 6)
  found.close()
  again = checkpoint.Checkpoints(str(tmp_path), train, alone=True)
  assert again.best() == 2


def test_a_running_mean_is_kept_apart(tmp_path):
  state = state_of(3)._replace(ema={"x": jnp.arange(3.0)})
  found = checkpoint.Checkpoints(str(tmp_path))
  found.save(state)
  found.wait()
  assert_same(found.restore(3, like(state)), state)
  assert_same(found.params(3, like(state).ema, "ema"), state.ema)


def test_a_disk_that_takes_no_more_is_named_and_loses_nothing(tmp_path):
  found = saved(tmp_path, 3)
  with (
    mock.patch.object(
      found._manager, "save", side_effect=OSError(28, "No space left on device")
    ),
    pytest.raises(OSError, match=r"No space left.*step 3 is whole"),
  ):
    found.save(state_of(4))
  assert_same(found.restore(3, like(state_of(3))), state_of(3, 3))


def test_a_write_that_fails_midway_loses_nothing(tmp_path):
  """A real failure: a file may not grow, as where a quota or disk is full."""
  found = saved(tmp_path, 3)
  large = jnp.asarray(np.random.default_rng(0).normal(size=100_000))
  state = state_of(4)._replace(params={"x": large})
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
  try:
    with pytest.raises(OSError, match=r"make room.*step 3 is whole"):
      found.save(state)
      found.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  again = checkpoint.Checkpoints(tmp_path)
  assert again.latest() == 3
  assert_same(again.restore(3, like(state_of(3))), state_of(3, 3))
  again.save(state_of(4))
  again.wait()
  assert again.latest() == 4


def test_a_store_that_does_not_answer_is_for_a_launcher(tmp_path):
  """Another try may do: nobody is asked to mend or delete anything."""
  found = saved(tmp_path, 3)
  gone = ConnectionResetError(104, "Connection reset by peer")
  with (
    mock.patch.object(found._manager, "save", side_effect=gone),
    pytest.raises(RuntimeError, match=r"reset by.*start again.*3 is whole"),
  ):
    found.save(state_of(4))
  for error in (gone, ValueError("UNAVAILABLE: Error reading x/y: HTTP 503")):
    with (
      mock.patch.object(found._manager, "restore", side_effect=error),
      pytest.raises(RuntimeError, match=r"must answer; got .*start again"),
    ):
      found.restore(3, like(state_of(3)))


@pytest.mark.parametrize(
  ("said", "kind", "message"),
  [
    ("ABORTED: a peer is gone", RuntimeError, "all processes must answer"),
    ("RESOURCE_EXHAUSTED: rate of requests", RuntimeError, "start again"),
    (
      "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes",
      ValueError,
      r"must fit into memory.*is whole",
    ),
    ("UNAUTHENTICATED: token has expired", OSError, "mend the permissions"),
  ],
)
def test_no_whole_checkpoint_is_to_be_deleted(tmp_path, said, kind, message):
  """What fails for another reason says which."""
  found = saved(tmp_path, 3)
  with (
    mock.patch.object(found._manager, "restore", side_effect=ValueError(said)),
    pytest.raises(kind, match=message) as raised,
  ):
    found.restore(3, like(state_of(3)))
  assert "delete" not in str(raised.value)


def test_the_steps_of_a_line_that_a_save_cuts_are_kept(tmp_path):
  found = saved(tmp_path, 3)
  assert found.window(3) == []
  window = [{"loss": jnp.float32(0.1 * i), "n": jnp.float32(i)} for i in (1, 2)]
  found.save(state_of(5), window=window)
  found.wait()
  again = checkpoint.Checkpoints(str(tmp_path))
  assert again.window(5) == [
    {k: np.float32(v) for k, v in x.items()} for x in window
  ]
  assert all(v.dtype == np.float32 for x in again.window(5) for v in x.values())
  assert_same(again.restore(5, like(state_of(5))), state_of(5))


def test_what_came_first_is_told(tmp_path):
  """An error of closing hides no other; alone it is one."""
  full = OSError(28, "No space left on device")
  for inside, raised in ((KeyError("first"), KeyError), (None, OSError)):
    found = saved(tmp_path / raised.__name__, 3)
    with (
      mock.patch.object(found._manager, "close", side_effect=full),
      pytest.raises(raised),
      found,
    ):
      if inside:
        raise inside


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(OSError, match="checkpoints: a checkpoint must be"):
    checkpoint.Checkpoints(tmp_path / "checkpoints")


def test_a_step_is_written_once(tmp_path):
  found = saved(tmp_path, 3)
  found.save(state_of(3, seed=99))
  found.wait()
  assert_same(found.restore(3, like(state_of(3))), state_of(3, seed=3))


def test_arrays_may_be_donated_at_once(tmp_path):
  """Saving returns before it has written; the step after reuses the memory."""
  found = checkpoint.Checkpoints(str(tmp_path))
  first = jnp.arange(1 << 20, dtype=jnp.float32)
  state = types.TrainState(jnp.int32(1), {"x": first}, {})
  want = np.array(first)
  change = jax.jit(
    lambda s: s._replace(step=s.step + 1, params={"x": s.params["x"] * 0 - 1}),
    donate_argnums=0,
  )
  found.save(state)
  for _ in range(3):
    state = change(state)
  found.wait()
  assert_same(found.restore(1, like(state)).params["x"], want)


@pytest.mark.parametrize(
  "name", ["8.orbax-checkpoint-tmp", "8.orbax-checkpoint-tmp-1700000000"]
)
def test_a_half_written_step_does_not_exist(tmp_path, name):
  written(tmp_path, 3)  # no other writer, which would clean up beside the test
  half = tmp_path / name
  shutil.copytree(tmp_path / "3", half)
  for path in list(half.rglob("*"))[::2]:
    if path.is_file():
      path.unlink()
  for reader in ((), (config.Train(), True)):  # it may still be written
    assert checkpoint.Checkpoints(str(tmp_path), *reader).latest() == 3
    assert half.exists()
  found = checkpoint.Checkpoints(str(tmp_path), config.Train(keep=5))
  assert found.latest() == 3
  assert_same(found.restore(3, like(state_of(3))), state_of(3, 3))
  found.save(state_of(9, 9))
  found.wait()
  assert found.latest() == 9
  assert not half.exists()  # or each kill would leave one


def test_a_state_of_another_step_is_refused(tmp_path):
  saved(tmp_path, 3).close()
  (tmp_path / "3").rename(tmp_path / "7")
  found = checkpoint.Checkpoints(str(tmp_path))
  with pytest.raises(ValueError, match=r"/7: .*got 3\. delete"):
    found.restore(7, like(state_of(7)))


def test_a_damaged_step_is_named(tmp_path):
  saved(tmp_path, 3).close()
  for path in (tmp_path / "3").rglob("*"):
    if path.is_file() and path.stat().st_size > 200:
      path.write_bytes(path.read_bytes()[:50])
  found = checkpoint.Checkpoints(str(tmp_path))
  with pytest.raises(ValueError, match="/3: must be a whole checkpoint"):
    found.restore(3, like(state_of(3)))


def test_a_changed_bit_is_named(tmp_path):
  """Of arrays that are stored apart no format and no compression notices it."""
  large = jnp.asarray(np.random.default_rng(0).normal(size=(300, 100)))
  state = state_of(3)._replace(params={"x": large}, ema={"x": large + 1})
  writer = checkpoint.Checkpoints(str(tmp_path))
  writer.save(state)
  writer.wait()
  for item, read in (
    ("params", lambda found: found.restore(3, like(state))),
    ("ema", lambda found: found.params(3, like(state).ema, "ema")),
  ):
    files = [p for p in (tmp_path / "3" / item).rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    whole = path.read_bytes()
    path.write_bytes(
      whole[:70_000] + bytes([whole[70_000] ^ 0x10]) + whole[70_001:]
    )
    found = checkpoint.Checkpoints(str(tmp_path))
    with pytest.raises(
      ValueError,
      match=rf"/3: must hold what was saved; got .* first '{item}/x'. delete",
    ):
      read(found)
    found.close()
    path.write_bytes(whole)
  assert_same(writer.restore(3, like(state)), state)


def test_a_step_without_sums_is_read(tmp_path):
  """As earlier versions wrote them."""
  saved(tmp_path, 3).close()
  shutil.rmtree(tmp_path / "3" / "sums")
  found = checkpoint.Checkpoints(str(tmp_path))
  assert_same(found.restore(3, like(state_of(3))), state_of(3, 3))


def test_another_model_is_refused(tmp_path):
  found = saved(tmp_path, 3)
  state = state_of(3)
  other = state._replace(params={"a": {"kernel": jnp.zeros((8, 4))}})
  with pytest.raises(ValueError, match="of this model"):
    found.params(3, like(other._replace(params={"c": jnp.zeros(3)})).params)
  wide = like(state._replace(params=state.params | {"b": jnp.zeros(5)}))
  with pytest.raises(ValueError, match="of this model"):
    found.params(3, wide.params)


def test_sharded_states_move_between_meshes(tmp_path):
  eight = jax.make_mesh((8,), ("d",))
  spread = NamedSharding(eight, PartitionSpec("d"))
  x = jnp.arange(16.0).reshape(8, 2)
  state = types.TrainState(
    jnp.int32(1), {"x": jax.device_put(x, spread)}, {"m": x + 1}
  )
  found = checkpoint.Checkpoints(str(tmp_path))
  found.save(state)
  found.wait()
  assert_same(found.restore(1, like(state)).params["x"], x)
  two = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])
  halves = NamedSharding(two, PartitionSpec(None, "d"))
  got = found.params(
    1, {"x": jax.ShapeDtypeStruct((8, 2), x.dtype, sharding=halves)}
  )
  assert got["x"].sharding == halves
  assert_same(got["x"], x)


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  saved = checkpoint.Checkpoints("runs/fast/checkpoints")
  state = types.TrainState(jnp.asarray(3), {"w": jnp.ones(2)}, ())
  saved.save(state)
  saved.wait()
  saved.close()
  assert checkpoint.Checkpoints("runs/fast/checkpoints").latest() == 3
