"""Traffic and loops read from compiled text, against sums made by hand."""

import functools
import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fs_jax.train.plan import hlo

ROW = 4000  # bytes of 1000 float32
RING = [(i, (i + 1) % 4) for i in range(4)]
BACK = [(b, a) for a, b in RING]


@functools.cache
def mesh():
  return jax.make_mesh(
    (4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


def compiled(local, into, out, rows=16):
  """What eight devices run for `local` of [rows, 1000] split as `into`."""
  on: Mesh = mesh()
  x = jax.ShapeDtypeStruct(
    (rows, 1000), jnp.float32, sharding=NamedSharding(on, into)
  )
  spread = jax.shard_map(
    local, mesh=on, in_specs=into, out_specs=out, check_vma=False
  )
  return hlo.parse(jax.jit(spread).lower(x).compile().as_text())


def entry(body, more=""):
  """A program whose entry has these lines."""
  lines = textwrap.indent(textwrap.dedent(body).strip(), "  ")
  head = "ENTRY %main (p: f32[8]) -> f32[8] {"
  return hlo.parse(f"HloModule m\n\n{more}\n{head}\n{lines}\n}}\n")


# What the CPU compiles: eight devices as 4 x 2.


def test_all_reduce():
  made = compiled(lambda x: jax.lax.psum(x, "data"), P("data"), P())
  (one,) = hlo.find_collectives(made)
  # Four rows a device: three quarters of them go out, and their sums again.
  assert (one.kind, one.group, one.times) == ("all-reduce", 4, 1)
  assert one.bytes == 2 * 3 / 4 * 4 * ROW


def test_all_gather():
  gather = lambda x: jax.lax.all_gather(x, "fsdp", tiled=True)
  (one,) = hlo.find_collectives(compiled(gather, P("fsdp"), P()))
  # Each of two has eight rows and sends them.
  assert (one.kind, one.group, one.bytes) == ("all-gather", 2, 8 * ROW)


def test_reduce_scatter():
  scatter = lambda x: jax.lax.psum_scatter(x, "data", tiled=True)
  (one,) = hlo.find_collectives(compiled(scatter, P(), P("data")))
  # Of sixteen rows a device keeps four, and sends three others their four.
  assert (one.kind, one.group, one.bytes) == ("reduce-scatter", 4, 12 * ROW)


def test_all_to_all():
  swap = lambda x: jax.lax.all_to_all(x, "data", 0, 0, tiled=True)
  made = hlo.find_collectives(compiled(swap, P("data"), P("data")))
  # Four rows a device, of which three go to others.
  assert {one.kind for one in made} == {"all-to-all"}
  assert sum(one.bytes for one in made) == 3 * ROW


def test_a_permutation_in_a_scan_runs_as_often_as_the_scan():
  def local(x):
    step = lambda x, _: (2 * jax.lax.ppermute(x, "data", RING), None)
    return jax.lax.scan(step, x, length=7)[0]

  (one,) = hlo.find_collectives(compiled(local, P("data"), P("data")))
  assert (one.kind, one.times, one.backward) == ("collective-permute", 7, False)
  assert one.bytes == 7 * 4 * ROW
  assert "ppermute" in one.source


@pytest.mark.parametrize(("first", "last"), [(0, 5), (3, 11)])
def test_a_loop_inside_a_loop_multiplies(first, last):
  def local(x):
    inner = lambda _, x: 1 + jax.lax.ppermute(x, "data", BACK)
    step = lambda x, _: (jax.lax.fori_loop(first, last, inner, 2 * x), None)
    return jax.lax.scan(step, x, length=3)[0]

  (one,) = hlo.find_collectives(compiled(local, P("data"), P("data")))
  assert (one.times, one.backward) == (3 * (last - first), True)
  assert one.bytes == one.times * 4 * ROW


def test_bytes_of_a_kind_add_up():
  def local(x):
    x = jax.lax.ppermute(x, "data", RING)
    x = jax.lax.ppermute(jnp.sin(x), "fsdp", [(0, 1), (1, 0)])
    return jax.lax.psum(x, "data")

  found = hlo.find_collectives(compiled(local, P("data"), P()))
  assert hlo.sum_by_kind(found) == {
    "all-reduce": 6 * ROW,
    "collective-permute": 8 * ROW,
  }
  assert hlo.sum_by_kind([]) == {}


def test_one_device_sends_nothing_and_reads_what_it_multiplies():
  x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  made = jax.jit(lambda x, y: x @ y).lower(x, x).compile()
  made = hlo.parse(made.as_text())
  assert hlo.find_collectives(made) == []
  assert hlo.count_cycles(made) == 0
  assert hlo.count_hbm_bytes(made) == 3 * 8 * 8 * 4  # two read, one written


# What a TPU's compiler writes and the CPU's does not, as libtpu 0.0.42 does.


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("{{0,2,4,6},{1,3,5,7}}", 4),
    ("{{0,1,2,3,4,5,6,7}}", 8),
    ("[4,2]<=[8]", 2),
    ("[2,4]<=[4,2]T(1,0)", 4),
    ("mesh['axis_0'=8] {'axis_0'}", 8),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
    ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0','axis_2'}", 8),
    ("mesh['axis_0'=8,'axis_1'=2] {'axis_0':(2)4}", 4),
    ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", 4),
  ],
)
def test_groups_however_they_are_written(groups, size):
  made = entry(f"""
    %p = f32[1000]{{0:T(1024)}} parameter(0)
    ROOT %r = f32[1000]{{0:T(1024)}} all-reduce(%p), channel_id=1, \
replica_groups={groups}, use_global_device_ids=true, to_apply=%add
  """)
  (one,) = hlo.find_collectives(made)
  assert one.group == size
  assert one.bytes == pytest.approx(2 * ROW * (size - 1) / size)


def test_what_is_started_and_awaited_counts_once():
  made = entry("""
    %p = s32[1000]{0:T(1024)} parameter(0)
    %s = (s32[1000]{0:T(1024)}, s32[1000]{0:T(1024)S(1)}, u32[]{:S(2)}, \
u32[]{:S(2)}) collective-permute-start(%p), channel_id=1, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
    %d = s32[1000]{0:T(1024)S(1)} collective-permute-done(%s)
    %g = (s32[1000]{0:T(1024)}, s32[4000]{0:T(1024)}) all-gather-start(%d), \
channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
    ROOT %h = s32[4000]{0:T(1024)} all-gather-done(%g)
  """)
  assert hlo.sum_by_kind(hlo.find_collectives(made)) == {
    "collective-permute": ROW,
    "all-gather": 3 * ROW,
  }


@pytest.mark.parametrize(
  ("pairs", "backward"),
  [
    ("{0,1},{1,2},{2,3},{3,0}", False),
    ("{0,3},{1,0},{2,1},{3,2}", True),
    ("{3,0},{0,1},{1,2},{2,3}", False),  # the one around comes first
    ("{0,1},{1,0}", True),
    ("{0,1}", False),
  ],
)
def test_which_way_a_permutation_goes(pairs, backward):
  made = entry(f"""
    %p = f32[1000]{{0}} parameter(0)
    ROOT %r = f32[1000]{{0}} collective-permute(%p), channel_id=1, \
source_target_pairs={{{pairs}}}
  """)
  (one,) = hlo.find_collectives(made)
  assert one.backward == backward


def fused(name):
  return f"""
%{name} (p: bf16[1000]) -> bf16[2000] {{
  %param_0.{name} = bf16[1000]{{0}} parameter(0)
  ROOT %all-gather.{name} = bf16[2000]{{0}} all-gather(%param_0.{name}), \
channel_id=118, replica_groups={{{{0,1}},{{2,3}}}}, dimensions={{0}}, \
backend_config={{"async_collective_fusion_config":{{"flag_start":"2"}}}}
}}
"""


def test_what_is_fused_with_what_hides_it_counts_once():
  made = entry(
    """
    %p = bf16[1000]{0} parameter(0)
    %a = bf16[2000]{0} fusion(%p), kind=kCustom, calls=%start
    %b = bf16[2000]{0} fusion(%p), kind=kCustom, calls=%middle
    ROOT %c = bf16[2000]{0} fusion(%p), kind=kCustom, calls=%end
    """,
    "".join(fused(name) for name in ("start", "middle", "end")),
  )
  (one,) = hlo.find_collectives(made)
  assert (one.kind, one.bytes) == ("all-gather", 2000)  # half of 4000 bytes


def test_what_goes_to_another_slice():
  made = entry("""
    %p = f32[1000]{0:T(1024)} parameter(0)
    %t = token[] after-all()
    %s = (f32[1000]{0:T(1024)}, u32[], token[]) send(%p, %t), channel_id=4, \
is_host_transfer=true, frontend_attributes={\
_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_megascale_target={{100002->200000},{200002->100000}}}
    %e = token[] send-done(%s), channel_id=4, frontend_attributes={\
_xla_host_transfer_handler_name="xla_megascale_runtime"}
    %h = (f32[1000]{0:T(1024)}, u32[], token[]) send(%p, %t), channel_id=5, \
is_host_transfer=true
  """)
  assert hlo.sum_by_kind(hlo.find_collectives(made)) == {hlo.SLICES: ROW}


LOOP = """
%cond (c: (s32[], f32[1000])) -> pred[] {
  %limit = s32[]{:T(128)} constant(LIMIT)
  %c = (s32[]{:T(128)}, f32[1000]{0}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%at, %limit), direction=LT
}

%body (b: (s32[], f32[1000])) -> (s32[], f32[1000]) {
  %stride = s32[]{:T(128)} constant(STRIDE)
  %b = (s32[]{:T(128)}, f32[1000]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%b), index=0
  %next = s32[]{:T(128)} add(%i, %stride)
  %x = f32[1000]{0} get-tuple-element(%b), index=1
  %y = f32[1000]{0} collective-permute(%x), channel_id=1, \
source_target_pairs={{0,1},{1,0}}
  %z = f32[1000]{0} copy(%y), backend_config={"window_config":{\
"estimated_cycles":"100"}}
  ROOT %out = (s32[]{:T(128)}, f32[1000]{0}) tuple(%next, %z)
}
"""


@pytest.mark.parametrize(
  ("limit", "stride", "known", "times"),
  [
    (7, 1, "", 7),
    (7, 2, "", 4),  # XLA may run two turns in one
    (8, 2, "", 4),
    (7, 1, ', backend_config={"known_trip_count":{"n":"3"}}', 3),
  ],
)
def test_turns_of_a_loop(limit, stride, known, times):
  more = LOOP.replace("LIMIT", str(limit)).replace("STRIDE", str(stride))
  made = entry(
    f"""
    %p = (s32[]{{:T(128)}}, f32[1000]{{0}}) parameter(0)
    ROOT %w = (s32[]{{:T(128)}}, f32[1000]{{0}}) while(%p), condition=%cond, \
body=%body{known}
    """,
    more,
  )
  (one,) = hlo.find_collectives(made)
  assert (one.times, one.bytes) == (times, times * ROW)
  assert hlo.count_cycles(made) == times * 100


def test_what_stays_in_the_core_is_not_read_from_memory():
  made = entry("""
    %p = f32[1000]{0:T(1024)} parameter(0)
    %q = f32[1000]{0:T(1024)S(1)} copy(%p)
    ROOT %r = f32[1000]{0:T(1024)S(1)} negate(%q)
  """)
  assert hlo.count_hbm_bytes(made) == ROW


def test_of_a_slice_only_the_slice_is_read():
  body = """
%slice (p: f32[8,1000], i: s32[]) -> f32[1,1000] {
  %param_0 = f32[8,1000]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  ROOT %d = f32[1,1000]{1,0} dynamic-slice(%param_0, %param_1)
}
"""
  made = entry(
    """
    %p = f32[8,1000]{1,0} parameter(0)
    %i = s32[] parameter(1)
    ROOT %f = f32[1,1000]{1,0} fusion(%p, %i), kind=kLoop, calls=%slice
    """,
    body,
  )
  assert hlo.count_hbm_bytes(made) == pytest.approx(
    2 * ROW, abs=8
  )  # read, written


def test_a_text_without_a_program_does_nothing():
  made = hlo.parse("")
  assert hlo.find_collectives(made) == []
  assert hlo.count_hbm_bytes(made) == hlo.count_cycles(made) == 0
