"""Memory and time of a training run, before a device is paid for.

The train step that `fit` runs is compiled for a TPU that need not be there: its
compiler tells whether the step fits and which operations it runs, data sheets
tell how long these take. No step was timed to make these figures.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import re
import time
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from fs_jax import config, types
from fs_jax.machine import compile_cache, hardware, sharding
from fs_jax.models import flops
from fs_jax.train import pair_scores
from fs_jax.train import step as steps
from fs_jax.train.plan import hlo

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# "memory required for HLO temporaries (81.56G) exceeds available HBM (15.75G)",
# "Used 17.16G of 15.75G hbm"
_REFUSED = re.compile(
  r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"
  r"|Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"
)
# What libtpu would ask a metadata server for, on a machine without a TPU.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  # It describes no device of this machine, so others may use them meanwhile.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Memory(NamedTuple):
  """A device's bytes; `needed` exceeds `available` where it is refused."""

  arguments: int  # state, frozen parameters and batch; 0 where refused
  needed: int
  available: int

  @property
  def fits(self) -> bool:
    return self.needed <= self.available


class Times(NamedTuple):
  """Seconds that a step keeps each part of a chip busy, at the least."""

  compute: float  # matrix units, at their peak
  hbm: float
  interconnect: float  # between chips of a slice
  network: float  # between slices
  cycles: float  # the core's, by the compiler's own estimate

  @property
  def step(self) -> float:
    """Seconds of a step if all of it overlaps: the slowest part's."""
    return max(self)

  @property
  def bound(self) -> str:
    return self._fields[self.index(max(self))]


@dataclasses.dataclass(frozen=True)
class Plan:
  """A stage on a topology. Times and rates are None where it does not fit."""

  config: str
  topology: str
  slices: int
  devices: int
  mesh: dict[str, int]
  batch_size: int
  accumulate: int
  parameters: int  # trained
  memory: Memory
  validation: Memory | None  # with the state beside it; None: no step fits
  validates: bool  # whether the config asks for it
  model_flops: float  # a step's, on all devices
  hardware_flops: float  # also what is computed twice to save memory
  collectives: dict[str, float]  # bytes a device sends in a step, by kind
  times: Times | None
  steps: int
  compile_seconds: float
  versions: dict[str, str]
  program: str  # digest of the step and of validation, before compiling

  @property
  def fits(self) -> bool:
    return self.needed <= self.memory.available

  @property
  def needed(self) -> int:
    """A device's bytes for the step, or for validation where that is more."""
    if self.validation is None or not self.validates:
      return self.memory.needed
    return max(self.memory.needed, self.validation.needed)

  @property
  def mfu(self) -> float | None:
    """Model FLOPs as a share of the chips' peak, if nothing waits."""
    if self.times is None:
      return None
    peak = hardware.tpu(self.topology).flops * self.devices
    return self.model_flops / self.times.step / peak

  @property
  def examples_per_second(self) -> float | None:
    return None if self.times is None else self.batch_size / self.times.step

  @property
  def days(self) -> float | None:
    return None if self.times is None else self.steps * self.times.step / 86400

  @property
  def device_hours(self) -> float | None:
    return None if self.days is None else self.days * 24 * self.devices

  def to_json(self) -> dict[str, Any]:
    values = dataclasses.asdict(self)
    values["memory"] = self.memory._asdict()
    if self.validation is not None:
      values["validation"] = self.validation._asdict()
    if self.times is not None:
      values["times"] = self.times._asdict()
    derived = ("fits", "mfu", "examples_per_second", "days", "device_hours")
    return values | {name: getattr(self, name) for name in derived}

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> "Plan":
    own = {f.name: values[f.name] for f in dataclasses.fields(cls)}
    own["memory"] = Memory(**own["memory"])
    if own["validation"] is not None:
      own["validation"] = Memory(**own["validation"])
    if own["times"] is not None:
      own["times"] = Times(**own["times"])
    return cls(**own)


def describe_devices(topology: str, slices: int = 1) -> list[jax.Device]:
  """Descriptions of the devices of "v5e:16x16", or of several such slices.

  Raises:
    ValueError: libtpu is missing, or knows no such topology.
  """
  generation = hardware.tpu(topology)
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      "libtpu: compiling for a TPU needs its compiler; got a machine without. "
      "pip install 'fs_jax[aot]' (Linux, x86_64), or `make plan`"
    )
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if generation.chip_config:
    options["chip_config_name"] = generation.chip_config
  try:
    described = topologies.get_topology_desc(
      platform="tpu", topology_name=topology, **options
    )
  except Exception as error:  # libtpu raises several kinds
    raise ValueError(
      "topology: must be one that libtpu knows, such as v5e:2x4, v6e:16x16 or "
      f"v5p:4x4x4; got {topology!r} ({str(error).splitlines()[0][:120]}). name "
      "one of those"
    ) from None
  return list(described.devices)


def plan(name: str, cfg: config.Config) -> Plan:
  """Compiles the step and the validation of `cfg` for `cfg.mesh.topology`.

  Validation is compiled even where `train.eval_every` is 0, to tell whether it
  can be switched on.

  Args:
    name: the plan's name, such as "configs/coco.py:fast".
    cfg: a training stage's config.

  Raises:
    ValueError: no topology, or a config that does not fit its mesh.
  """
  topology, slices = cfg.mesh.topology, cfg.mesh.slices
  if not topology:
    raise ValueError(
      "mesh.topology: a plan is for a topology; got none. give one with "
      "--topology=v5e:2x4"
    )
  chip = hardware.tpu(topology)
  mesh = sharding.mesh(cfg.mesh, describe_devices(topology, slices))
  count = flops.train_step(cfg, cfg.tokens.vocabulary)
  program = steps.program(cfg, cfg.tokens.vocabulary, mesh)
  began = time.perf_counter()
  lowered = lower(cfg, program)
  memory, compiled = compile_step(lowered.step, chip.hbm)
  validation = None
  if compiled is not None:
    validation = compile_validation(lowered, program, chip.hbm)
  seconds = time.perf_counter() - began
  times, collectives = None, []
  if compiled is not None:
    collectives = hlo.find_collectives(compiled)
    times = estimate_times(
      chip,
      torus_sides(topology),
      count.hardware / mesh.size,
      hlo.count_hbm_bytes(compiled),
      hlo.count_cycles(compiled),
      collectives,
    )
  return Plan(
    config=name,
    topology=topology,
    slices=slices,
    devices=mesh.size,
    mesh=dict(mesh.shape),
    batch_size=cfg.train.batch_size,
    accumulate=cfg.train.accumulate,
    parameters=_count(program.state.params),
    memory=memory,
    validation=validation,
    validates=cfg.train.eval_every > 0,
    model_flops=count.model,
    hardware_flops=count.hardware,
    collectives=hlo.sum_by_kind(collectives),
    times=times,
    steps=cfg.train.steps,
    compile_seconds=round(seconds, 1),
    versions=compile_cache.versions(),
    program=lowered.digest(),
  )


class Lowered(NamedTuple):
  """Programs as they are given to the compiler."""

  step: jax.stages.Lowered
  score: jax.stages.Lowered  # validation's
  params: types.Params  # shapes of the parameters that validation is given

  def digest(self) -> str:
    """SHA-256 of both: equal programs are compiled to equal ones."""
    texts = "\0".join(x.as_text() for x in (self.step, self.score))
    return hashlib.sha256(texts.encode()).hexdigest()


def lower(cfg: config.Config, program: steps.Program) -> Lowered:
  """Lowers the step of `program` and the validation of `cfg`."""
  pairs = pair_scores.program(cfg, cfg.tokens.vocabulary, program.mesh)
  return Lowered(
    program.step.lower(program.state, program.frozen, program.batch),
    pairs.score.lower(pairs.params, pairs.visual, pairs.text),
    pairs.params,
  )


def fingerprint(cfg: config.Config) -> str:
  """`Plan.program` of a config, without compiling: seconds, not minutes.

  Raises:
    ValueError: as `plan`.
  """
  described = describe_devices(cfg.mesh.topology, cfg.mesh.slices)
  mesh = sharding.mesh(cfg.mesh, described)
  return lower(cfg, steps.program(cfg, cfg.tokens.vocabulary, mesh)).digest()


def compile_step(
  lowered: jax.stages.Lowered, available: int
) -> tuple[Memory, hlo.Program | None]:
  """Memory of the step, and its program; None where it does not fit.

  Only the compiler can tell: temporaries may add up to more than `available`
  bytes and still fit one after the other.
  """
  try:
    step = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    return parse_refusal(str(error), available), None
  text = step.as_text()
  assert text is not None  # XLA's programs have one
  return _memory(step, available), hlo.parse(text)


def compile_validation(
  lowered: Lowered, program: steps.Program, available: int
) -> Memory:
  """Memory of a validation between two steps, beside what these hold."""
  beside = _local_bytes((program.state, program.frozen, program.batch))
  beside -= _local_bytes(lowered.params)  # or as much of a running mean
  try:
    memory = _memory(lowered.score.compile(), available)
  except jax.errors.JaxRuntimeError as error:
    memory = parse_refusal(str(error), available)
    return memory._replace(needed=memory.needed + beside)
  return Memory(memory.arguments + beside, memory.needed + beside, available)


def _memory(compiled: jax.stages.Compiled, available: int) -> Memory:
  analysis: Any = compiled.memory_analysis()
  arguments = analysis.argument_size_in_bytes
  needed = max(analysis.peak_memory_in_bytes, arguments)
  return Memory(arguments, needed, available)


def _local_bytes(tree: types.Tree) -> int:
  """Bytes that a device holds of arrays, from their shapes and shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def parse_refusal(message: str, available: int) -> Memory:
  """The memory a compiler needed when it ran out of it, from its message.

  Raises:
    RuntimeError: it failed for another reason: a bug of ours or its own.
  """
  if "RESOURCE_EXHAUSTED" not in message:
    raise RuntimeError(message)
  match = _REFUSED.search(message)
  if not match:
    return Memory(0, available + 1, available)
  needed, a, limit, b = (x for x in match.groups() if x)
  return Memory(
    0, int(float(needed) * _UNITS[a]), int(float(limit) * _UNITS[b])
  )


def count_flops(cfg: config.Config) -> tuple[float, float]:
  """FLOPs of a step of `flops.shallow(cfg)`: ours, and XLA's for one CPU.

  XLA also counts operations other than matrix products, a few percent. It is
  asked before it compiles: afterwards some of the products that are computed
  twice have been merged again.
  """
  cfg = flops.shallow(cfg)
  mesh = sharding.mesh(cfg.mesh, jax.devices("cpu")[:1])
  program = steps.program(cfg, cfg.tokens.vocabulary, mesh)
  step = program.step.lower(program.state, program.frozen, program.batch)
  ours = flops.train_step(cfg, cfg.tokens.vocabulary).hardware
  cost: Any = step.cost_analysis()
  return ours, cost["flops"]


def estimate_times(
  chip: hardware.Tpu,
  sides: tuple[int, ...],
  hardware_flops: float,
  hbm_bytes: float,
  cycles: float,
  collectives: list[hlo.Collective],
) -> Times:
  """The roofline of a device: each part at its peak, alone.

  A collective goes both ways around one axis of the torus, or around all of
  them where its group is larger than the longest; one way where no link joins
  the ends of an axis, since a chip there has no other neighbour. A
  permutation goes one way over one link.

  Args:
    chip: its peaks.
    sides: the torus's sides, in chips.
    hardware_flops, hbm_bytes, cycles: one device's, for a step.
    collectives: one device's, for a step.
  """
  spread = ways = 0.0
  one_way = {False: 0.0, True: 0.0}
  for collective in collectives:
    size = collective.bytes
    if collective.kind == hlo.SLICES:
      spread += size / chip.network
    elif collective.kind == "collective-permute":
      one_way[collective.backward] += size / chip.link
    else:
      axes = chip.axes if collective.group > max(sides) else 1
      around = 2 if max(sides) >= chip.closed else 1
      ways += size / (around * axes * chip.link)
  return Times(
    compute=hardware_flops / chip.flops,
    hbm=hbm_bytes / chip.hbm_bandwidth,
    interconnect=ways + max(one_way.values()),
    network=spread,
    cycles=cycles / chip.clock,
  )


def torus_sides(topology: str) -> tuple[int, ...]:
  """The sides in chips: (16, 16) for "v5e:16x16"."""
  return tuple(int(n) for n in re.findall(r"\d+", topology.partition(":")[2]))


def _count(params: types.Params) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))
