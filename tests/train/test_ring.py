"""The ring computes what the plain losses do, wherever the batch lies."""

import functools
import math
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from fs_jax import config
from fs_jax.machine import sharding
from fs_jax.train import losses, ring
from tests.support import inprocess, lowered

B, E = 24, 4
SCALARS = {"info_nce": (7.0,), "sigmoid": (7.0, -2.0)}
KINDS = list(SCALARS)


def mesh(*sizes):
  devices = jax.devices()[: math.prod(sizes)]
  return sharding.mesh(config.Mesh(*sizes), devices)


def batch(m, seed=0):
  """Captions near their visual; some ids equal, some rows padding."""
  rng = np.random.default_rng(seed)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  visual = unit(rng.normal(size=(B, E)))
  text = unit(visual.repeat(m, axis=0) + 0.5 * rng.normal(size=(B * m, E)))
  return (
    visual.astype(np.float32),
    text.astype(np.float32),
    rng.integers(2 * B, size=B),
    rng.integers(3 * B, size=B * m),
    rng.random(B) < 0.8,
  )


@functools.cache
def program(kind, mesh=None, chunk=None):
  """Jitted (batch) -> ((value, metrics), gradients); plain without a mesh."""
  loss = getattr(losses, kind)
  if mesh is not None:
    loss = functools.partial(getattr(ring, kind), mesh=mesh, chunk=chunk)
  scalars = tuple(map(jnp.float32, SCALARS[kind]))
  count = 2 + len(scalars)

  @jax.jit
  def run(visual, text, *ids):
    learned = (visual, text, *scalars)

    def value(visual, text, *scalars):
      return loss(losses.Pairs(visual, text, *ids), *scalars)

    return jax.value_and_grad(value, range(count), has_aux=True)(*learned)

  return run


def check(kind, on, chunk, case):
  with jax.default_matmul_precision("highest"):
    (want, metrics), slopes = program(kind)(*case)
    (got, ours), found = program(kind, on, chunk)(*case)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert ours.keys() == metrics.keys() == {"batch_recall"}
  np.testing.assert_allclose(
    ours["batch_recall"], metrics["batch_recall"], rtol=1e-6
  )
  for a, b in zip(found, slopes, strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


# Sizes of data, fsdp, model; captions; chunk: most leave remainders.
PLACES = [
  ((1, 1, 1), 2, 5),
  ((1, 1, 1), 1, 24),
  ((2, 1, 1), 2, 5),
  ((2, 1, 2), 1, 7),
  ((2, 2, 1), 1, 4),
  ((2, 2, 2), 2, 5),
  ((1, 8, 1), 1, 2),
  ((4, 2, 1), 2, 99),
  ((1, 1, 1), 3, 7),
  ((2, 1, 1), 3, 99),
  ((2, 2, 1), 3, 4),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sizes", "m", "chunk"), PLACES)
def test_ring_is_the_plain_loss(kind, sizes, m, chunk):
  case = batch(m)
  check(kind, mesh(*sizes), chunk, case)
  check(kind, mesh(*sizes), chunk, batch(m, seed=1))
  # The case says something: ids and mask matter, and recall is no constant.
  (value, metrics), _ = program(kind)(*case)
  everyone = (np.arange(B), np.arange(B * m), np.ones(B, bool))
  assert abs(value - program(kind)(*case[:2], *everyone)[0][0]) > 1e-3
  assert 0.2 < metrics["batch_recall"] < 0.9


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 2, 1)])
@pytest.mark.parametrize("chunk", [3, 16])
def test_a_text_counts_a_visual_once(sizes, chunk):
  """All look alike: log B from a text, log(1 + (B - 1) M) from a visual."""
  count, m = 8, 2
  zero = np.zeros((count, E), np.float32), np.zeros((count * m, E), np.float32)
  ids = np.arange(count), np.arange(count * m), np.ones(count, bool)
  (value, _), _ = program("info_nce", mesh(*sizes), chunk)(*zero, *ids)
  want = (np.log(count) + np.log(1 + (count - 1) * m)) / 2
  np.testing.assert_allclose(value, want, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_the_first_of_equal_visuals_is_found(kind, sizes):
  # Whole numbers: equal visuals have equal logits, to the last bit.
  visual = np.eye(E, dtype=np.float32)[np.arange(B) % E]
  text = visual.repeat(2, axis=0)
  case = (visual, text, np.arange(B), np.arange(2 * B), np.arange(B) >= 2)
  for run in (program(kind), program(kind, mesh(*sizes), 5)):
    found = run(*case)[0][1]["batch_recall"]
    np.testing.assert_allclose(found, E / (B - 2), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_a_batch_of_padding_is_zero_with_a_gradient_of_zero(kind, sizes):
  visual, text, *ids, _ = batch(2)
  run = program(kind, mesh(*sizes), 5)
  (value, metrics), slopes = run(visual, text, *ids, np.zeros(B, bool))
  assert value == metrics["batch_recall"] == 0
  for x in slopes:
    np.testing.assert_array_equal(x, np.zeros_like(x))


def test_far_logits_keep_their_small_shares():
  # Thousands of nats apart: below a maximum of the whole tile, most
  # exponentials would be 0.
  visual, text, *ids = batch(2)
  check("info_nce", mesh(1, 1, 1), 5, (30 * visual, 30 * text, *ids))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_float32_whatever_the_embeddings_are(kind):
  visual, text, *ids = batch(2)
  half = [jnp.asarray(x, jnp.bfloat16) for x in (visual, text)]
  run = program(kind, mesh(1, 1, 1), 5)
  with jax.default_matmul_precision("highest"):
    (value, _), slopes = run(*half, *ids)
    whole = [x.astype(jnp.float32) for x in half]
    (want, _), exact = program(kind)(*whole, *ids)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, want, rtol=1e-5)
  assert [x.dtype for x in slopes[:2]] == [jnp.bfloat16] * 2
  for a, b in zip(slopes, exact, strict=True):
    rtol = 1e-5 if a.dtype == jnp.float32 else 2**-8  # half a last place
    np.testing.assert_allclose(a.astype(b.dtype), b, rtol=rtol, atol=1e-7)


def largest(run, case):
  """Elements of the largest array that any equation makes."""
  made = lowered.inner(jax.make_jaxpr(run)(*case).jaxpr)
  return max(math.prod(x.aval.shape) for e in made for x in e.outvars)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 2, 1)])
def test_no_array_holds_all_pairs_nor_a_device_s_share_of_them(kind, sizes):
  case, on, chunk = batch(2), mesh(*sizes), 6
  rows = 2 * B
  most = rows * E  # the embeddings; a tile is less, one row of tiles is more
  assert chunk**2 < most < chunk * rows
  assert largest(program(kind), case) >= rows**2  # the count counts
  assert largest(program(kind, on, chunk), case) == most
  case = [jax.device_put(x, sharding.batch(on)) for x in case]
  compiled = program(kind, on, chunk).lower(*case).compile().as_text()
  shapes = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", compiled)
  held = max(math.prod(map(int, s.split(","))) for s in shapes)
  assert rows * E // on.size <= held <= most
  assert ("collective-permute" in compiled) == (on.size > 1)
  assert "all-gather" not in compiled


def test_bad_sizes_are_refused():
  pairs = losses.Pairs(*map(jnp.asarray, batch(1)))
  scale = jnp.float32(1)
  with pytest.raises(ValueError, match=r"chunk: must be at least 1.*got 0\. "):
    ring.info_nce(pairs, scale, mesh=mesh(1, 1, 1), chunk=0)
  short = losses.Pairs(*(x[:20] for x in pairs))
  with pytest.raises(ValueError, match="batch: must be divisible by the 8"):
    ring.info_nce(short, scale, mesh=mesh(8, 1, 1), chunk=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_another_shape_is_refused(kind):
  pairs = losses.Pairs(*map(jnp.asarray, batch(2)))
  scalars = map(jnp.float32, SCALARS[kind])
  short = pairs._replace(mask=pairs.mask[:-1])
  with pytest.raises(jaxtyping.TypeCheckError, match="mask"):
    getattr(ring, kind)(short, *scalars, mesh=mesh(1, 1, 1), chunk=5)


PROCESS = """
import sys
import jax
import numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from fs_jax.machine import sharding
from tests.train import test_ring
assert jax.process_count() == 2 and len(jax.devices()) == 4
on = test_ring.mesh(2, 2, 1)
place = sharding.batch(on)
case = [
  jax.make_array_from_callback(x.shape, place, x.__getitem__)
  for x in test_ring.batch(2)
]
whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(on))
for kind in test_ring.KINDS:
  with jax.default_matmul_precision("highest"):
    found = whole(test_ring.program(kind, on, 5)(*case))
  np.savez(f"{sys.argv[3]}/{kind}{sys.argv[2]}", *jax.tree.leaves(found))
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  two = re.sub(r"count=\d+", "count=2", os.environ["XLA_FLAGS"])
  started = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, address, str(i), str(tmp_path)],
      cwd=inprocess.ROOT,
      env=os.environ | {"XLA_FLAGS": two},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  try:
    said = [process.communicate(timeout=120)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  assert [p.returncode for p in started] == [0, 0], "\n".join(said)
  for kind in KINDS:
    with jax.default_matmul_precision("highest"):
      want = jax.tree.leaves(program(kind)(*batch(2)))
    for i in range(2):
      found = np.load(tmp_path / f"{kind}{i}.npz")
      for a, b in zip(found.values(), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
