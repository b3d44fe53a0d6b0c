"""What a training run will need and take, before a device is paid for.

The train step that `fit` runs is compiled for a TPU that need not be there:
its compiler says whether the step fits and what it does, data sheets say how
long that takes. No step was timed to make these figures.
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
# Of a machine without a TPU: what libtpu would ask a metadata server for.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  # It describes no device of this machine, so others may use them meanwhile.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Memory(NamedTuple):
  """Bytes of a device; `needed` exceeds `available` where it is refused."""

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
  cycles: float  # of the core, by the compiler's own estimate

  @property
  def step(self) -> float:
    """What the step takes if all of it overlaps: the slowest part."""
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
  model_flops: float  # of a step, all devices
  hardware_flops: float  # with what is computed twice to save memory
  collectives: dict[str, float]  # bytes a device sends in a step, by kind
  times: Times | None
  steps: int
  compile_seconds: float
  versions: dict[str, str]
  program: str  # of the step and of validation, before they are compiled

  @property
  def fits(self) -> bool:
    return self.needed <= self.memory.available

  @property
  def needed(self) -> int:
    """Bytes of a device: of the step, or of validation where that is more."""
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
    values["validation"] = self.validation and self.validation._asdict()
    values["times"] = self.times and self.times._asdict()
    derived = ("fits", "mfu", "examples_per_second", "days", "device_hours")
    return values | {name: getattr(self, name) for name in derived}

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> "Plan":
    own = {f.name: values[f.name] for f in dataclasses.fields(cls)}
    own["memory"] = Memory(**own["memory"])
    own["validation"] = own["validation"] and Memory(**own["validation"])
    own["times"] = own["times"] and Times(**own["times"])
    return cls(**own)


def devices(topology: str, slices: int = 1) -> list[Any]:
  """Described devices of "v5e:16x16", or of several such slices.

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
  except Exception as error:  # of whatever kind libtpu raises
    raise ValueError(
      "topology: must be one that libtpu knows, such as v5e:2x4, v6e:16x16 or "
      f"v5p:4x4x4; got {topology!r} ({str(error).splitlines()[0][:120]}). name "
      "another"
    ) from None
  return list(described.devices)


def plan(name: str, cfg: config.Config) -> Plan:
  """Compiles the step and the validation of `cfg` for `cfg.mesh.topology`.

  Validation also where `train.eval_every` is 0: whether it can be switched on.

  Args:
    name: what the plan is called: "configs/coco.py:fast".
    cfg: of a training stage.

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
  mesh = sharding.mesh(cfg.mesh, devices(topology, slices))
  count = flops.train_step(cfg, cfg.tokens.vocabulary)
  made = steps.program(cfg, cfg.tokens.vocabulary, mesh)
  began = time.perf_counter()
  lowered = lower(cfg, made)
  memory, program = compiled(lowered.step, chip.hbm)
  validated = validating(lowered, made, chip.hbm) if program else None
  seconds = time.perf_counter() - began
  found = hlo.collectives(program) if program else []
  return Plan(
    config=name,
    topology=topology,
    slices=slices,
    devices=mesh.size,
    mesh=dict(mesh.shape),
    batch_size=cfg.train.batch_size,
    accumulate=cfg.train.accumulate,
    parameters=_count(made.state.params),
    memory=memory,
    validation=validated,
    validates=cfg.train.eval_every > 0,
    model_flops=count.model,
    hardware_flops=count.hardware,
    collectives=hlo.bytes_by_kind(found),
    times=program
    and times(
      chip,
      sides(topology),
      count.hardware / mesh.size,
      hlo.hbm_bytes(program),
      hlo.cycles(program),
      found,
    ),
    steps=cfg.train.steps,
    compile_seconds=round(seconds, 1),
    versions=compile_cache.versions(),
    program=lowered.digest(),
  )


class Lowered(NamedTuple):
  """Programs as they are given to the compiler."""

  step: Any
  score: Any  # of validation
  params: types.Params  # shapes of what validation is called with

  def digest(self) -> str:
    """SHA-256 of both: equal programs are compiled to equal ones."""
    texts = "\0".join(x.as_text() for x in (self.step, self.score))
    return hashlib.sha256(texts.encode()).hexdigest()


def lower(cfg: config.Config, made: steps.Program) -> Lowered:
  """The step of `made` and the validation of `cfg`, not yet compiled."""
  of = pair_scores.program(cfg, cfg.tokens.vocabulary, made.mesh)
  return Lowered(
    made.step.lower(made.state, made.frozen, made.batch),
    of.score.lower(of.params, of.visual, of.text),
    of.params,
  )


def fingerprint(cfg: config.Config) -> str:
  """`Plan.program` of a config, without compiling: seconds, not minutes.

  Raises:
    ValueError: as `plan`.
  """
  mesh = sharding.mesh(cfg.mesh, devices(cfg.mesh.topology, cfg.mesh.slices))
  return lower(cfg, steps.program(cfg, cfg.tokens.vocabulary, mesh)).digest()


def compiled(lowered: Any, available: int) -> tuple[Memory, hlo.Program | None]:
  """Memory of the step and what it does; None where it does not fit.

  The compiler is who knows: temporaries may add up to more than `available`
  bytes and still fit one after the other.
  """
  try:
    step = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    return refused(str(error), available), None
  said = step.memory_analysis()
  needed = max(said.peak_memory_in_bytes, said.argument_size_in_bytes)
  memory = Memory(said.argument_size_in_bytes, needed, available)
  return memory, hlo.parse(step.as_text())


def validating(lowered: Lowered, made: steps.Program, available: int) -> Memory:
  """Memory of a validation between two steps of `made`, which stay there."""
  beside = _local_bytes((made.state, made.frozen, made.batch))
  beside -= _local_bytes(lowered.params)  # or as much of a running mean
  try:
    run = lowered.score.compile()
  except jax.errors.JaxRuntimeError as error:
    memory = refused(str(error), available)
    return memory._replace(needed=memory.needed + beside)
  said = run.memory_analysis()
  needed = max(said.peak_memory_in_bytes, said.argument_size_in_bytes)
  return Memory(
    said.argument_size_in_bytes + beside, needed + beside, available
  )


def _local_bytes(tree: Any) -> int:
  """Of what a device holds of arrays, from their shapes and shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def refused(message: str, available: int) -> Memory:
  """What a compiler needed that ran out of memory, from what it says.

  Raises:
    RuntimeError: it failed for another reason: a bug of ours or its own.
  """
  if "RESOURCE_EXHAUSTED" not in message:
    raise RuntimeError(message)
  found = _REFUSED.search(message)
  if not found:
    return Memory(0, available + 1, available)
  needed, a, limit, b = (x for x in found.groups() if x)
  return Memory(
    0, int(float(needed) * _UNITS[a]), int(float(limit) * _UNITS[b])
  )


def counted(cfg: config.Config) -> tuple[float, float]:
  """FLOPs of a step of `flops.shallow(cfg)`: ours, and XLA's of one CPU.

  XLA also counts what is no matrix product, a few percent. It is asked before
  it compiles: afterwards some of what is computed twice is one again.
  """
  cfg = flops.shallow(cfg)
  mesh = sharding.mesh(cfg.mesh, jax.devices("cpu")[:1])
  made = steps.program(cfg, cfg.tokens.vocabulary, mesh)
  step = made.step.lower(made.state, made.frozen, made.batch)
  ours = flops.train_step(cfg, cfg.tokens.vocabulary).hardware
  return ours, step.cost_analysis()["flops"]


def times(
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
  the ends of an axis, since who lives there has no other neighbour. A
  permutation goes one way over one link.

  Args:
    chip: its peaks.
    sides: of the torus, in chips.
    hardware_flops, hbm_bytes, cycles: of one device's step.
    collectives: of one device's step.
  """
  spread = ways = 0.0
  one_way = {False: 0.0, True: 0.0}
  for one in collectives:
    if one.kind == hlo.SLICES:
      spread += one.bytes / chip.network
    elif one.kind == "collective-permute":
      one_way[one.backward] += one.bytes / chip.link
    else:
      axes = chip.axes if one.group > max(sides) else 1
      around = 2 if max(sides) >= chip.closed else 1
      ways += one.bytes / (around * axes * chip.link)
  return Times(
    compute=hardware_flops / chip.flops,
    hbm=hbm_bytes / chip.hbm_bandwidth,
    interconnect=ways + max(one_way.values()),
    network=spread,
    cycles=cycles / chip.clock,
  )


def sides(topology: str) -> tuple[int, ...]:
  """(16, 16) of "v5e:16x16"."""
  return tuple(int(n) for n in re.findall(r"\d+", topology.partition(":")[2]))


def _count(params: Any) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))
