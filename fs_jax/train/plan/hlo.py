"""Traffic and cycles of a compiled program, read from its text.

XLA's own cost analysis counts the body of a loop once. Here everything is
multiplied by how often it runs, from the loops' own counters.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
SLICES = "between slices"  # a TPU's slices: sent through the hosts
# Neither read nor write memory themselves, or are counted where they start.
_FREE = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "conditional",
  "call",
  "after-all",
  "partition-id",
  "replica-id",
  "opt-barrier",
  "custom-call",
  "async-update",
}
_BYTES = (
  dict.fromkeys(("pred", "s4", "s8", "u8"), 1)
  | dict.fromkeys(("s16", "u16", "bf16", "f16"), 2)
  | dict.fromkeys(("s32", "u32", "f32"), 4)
  | dict.fromkeys(("s64", "u64", "f64"), 8)
)
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Shape(NamedTuple):
  """An array of a program."""

  bytes: int
  hbm: bool  # or else in a core's own memory
  dims: tuple[int, ...]


class Instruction(NamedTuple):
  """A line of a computation."""

  name: str
  shapes: tuple[Shape, ...]  # the result's; a tuple has several
  opcode: str
  operands: tuple[str, ...]
  text: str  # operands and attributes
  root: bool


class Program(NamedTuple):
  """Computations by name, their instructions by name."""

  computations: dict[str, dict[str, Instruction]]
  entry: str


class Collective(NamedTuple):
  """A collective, and the bytes a device sends for it in a whole run."""

  kind: str  # one of COLLECTIVES, or SLICES
  bytes: float  # sent by a device, for all `times`
  group: int  # devices that take part together
  times: int
  backward: bool  # a permute to the device before, not after
  source: str  # the JAX operation it comes from


def parse(text: str) -> Program:
  """Computations of `compiled.as_text()`."""
  computations: dict[str, dict[str, Instruction]] = {}
  entry, inside = "", None
  for line in text.splitlines():
    if line.endswith("{") and not line.startswith(" "):
      head = re.match(r"(ENTRY )?%?([\w.-]+)", line)
      if head and " -> " in line:
        inside = computations.setdefault(head[2], {})
        entry = head[2] if head[1] else entry
    elif inside is not None and (match := _LINE.match(line)):
      root, name, result, opcode, rest = match.groups()
      inside[name] = Instruction(
        name,
        tuple(_shapes(result)),
        opcode,
        tuple(re.findall(r"%([\w.-]+)", _operands(rest))),
        rest,
        bool(root),
      )
  return Program(computations, entry)


def walk(program: Program) -> Iterator[tuple[Instruction, str, int, bool]]:
  """Yields (instruction, its computation, times it runs, whether fused)."""
  waiting = [(program.entry, 1, False)]
  while waiting:
    name, times, fused = waiting.pop()
    for op in program.computations.get(name, {}).values():
      yield op, name, times, fused
      each = times * count_trips(program, op) if op.opcode == "while" else times
      within = fused or op.opcode == "fusion"
      waiting += [(called, each, within) for called in _called(op)]


def count_trips(program: Program, loop: Instruction) -> int:
  """How often the body of a while runs; 1 where its text does not say.

  A counter starts at 0 where XLA does not give the number itself: all scans do.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
  if known:
    return int(known[1])
  names = re.search(r"condition=%?([\w.-]+), body=%?([\w.-]+)", loop.text)
  if not names:
    return 1
  condition, body = (program.computations.get(n, {}) for n in names.groups())
  test = next((i for i in condition.values() if i.root), None)
  if test is None or len(test.operands) < 2:
    return 1
  counter, bound = (condition.get(name) for name in test.operands[:2])
  index = counter and re.search(r"index=(\d+)", counter.text)
  if bound is None or bound.opcode != "constant" or not index:
    return 1
  limit = int(re.match(r"\d+", bound.text)[0])  # type: ignore[index]
  return max(math.ceil(limit / _stride(body, int(index[1]))), 1)


def find_collectives(program: Program) -> list[Collective]:
  """All that devices exchange; one started and awaited counts once."""
  largest: dict[str, Collective] = {}
  for op, _, times, fused in walk(program):
    kind = op.opcode.removesuffix("-start")
    if op.opcode == "send" and "megascale" in op.text:
      kind = SLICES
    if kind not in (*COLLECTIVES, SLICES):
      continue
    # Fused with what hides it, one appears at its start, middle and end.
    channel = re.search(r"channel_id=(\d+)", op.text) if fused else None
    collective = _collective(kind, op, times)
    key = f"channel {channel[1]}" if channel else op.name
    if key not in largest or collective.bytes > largest[key].bytes:
      largest[key] = collective
  return list(largest.values())


def sum_by_kind(collectives: list[Collective]) -> dict[str, float]:
  """Bytes that a device sends for each kind of collective that occurs."""
  total: dict[str, float] = collections.defaultdict(float)
  for collective in collectives:
    total[collective.kind] += collective.bytes
  return {k: total[k] for k in (*COLLECTIVES, SLICES) if total[k]}


def count_cycles(program: Program) -> float:
  """Cycles of a TPU's core, by its compiler's estimate; 0 on other machines."""
  total = 0.0
  for op, _, times, fused in walk(program):
    estimate = re.search(r'"estimated_cycles":"(\d+)"', op.text)
    if estimate and not fused:
      total += times * int(estimate[1])
  return total


def count_hbm_bytes(program: Program) -> float:
  """Bytes read and written in a device's large memory, caches left out.

  A core's own memory does not count; where a fusion reads or writes a slice of
  an array, only the slice does.
  """
  total = 0.0
  for op, inside, times, fused in walk(program):
    if not fused and op.opcode not in _FREE and not _done(op):
      total += times * _moved(program, program.computations[inside], op)
  return total


def _done(op: Instruction) -> bool:
  return op.opcode.endswith("-done")


def _moved(
  program: Program, around: dict[str, Instruction], op: Instruction
) -> float:
  if op.opcode in ("copy-start", "slice-start"):
    return min(s.bytes for s in op.shapes[:2]) * sum(
      s.hbm for s in op.shapes[:2]
    )
  body = {}
  if op.opcode == "fusion":
    body = program.computations.get(next(iter(_called(op)), ""), {})
  written = float(sum(s.bytes for s in op.shapes if s.hbm))
  read = 0.0
  for index, name in enumerate(op.operands):
    source = around.get(name)
    if source is None or not source.shapes:
      continue
    whole = sum(s.bytes for s in source.shapes if s.hbm)
    part, update = _sliced(body, index) if whole else (None, None)
    if update is not None:  # written in place: neither read nor copied
      written -= max(min(whole, written) - update, 0)
    read += whole if part is None else min(part, whole)
  return written + read


def _sliced(
  body: dict[str, Instruction], index: int
) -> tuple[float | None, float | None]:
  """Bytes that a fusion reads of operand `index`, and writes of it in place.

  None where it is the whole operand, or not written in place.
  """
  mine = next(
    (
      i.name
      for i in body.values()
      if i.opcode == "parameter" and i.text.startswith(f"{index})")
    ),
    None,
  )
  if mine is None:
    return None, None
  names, read, update = {mine}, 0.0, None
  for op in body.values():
    used = names & set(op.operands)
    if not used:
      continue
    if op.opcode == "bitcast":
      names.add(op.name)
    elif op.opcode in ("dynamic-slice", "slice", "gather"):
      read += op.shapes[0].bytes
    elif op.opcode == "dynamic-update-slice" and op.operands[0] in names:
      source = body.get(op.operands[1])
      update = float(source.shapes[0].bytes) if source else 0.0
    else:
      return None, None
  return read, update


def _collective(kind: str, op: Instruction, times: int) -> Collective:
  shapes = op.shapes
  if op.opcode == "all-gather-start":
    shapes = shapes[len(shapes) // 2 :]
  elif op.opcode == "collective-permute-start":
    shapes = shapes[1:2]
  elif kind == SLICES:
    shapes = shapes[:1]
  group = 2 if kind == SLICES else _group(op.text)
  size = float(sum(s.bytes for s in shapes))
  others = (group - 1) / group
  sent = {
    "all-gather": size * others,
    "all-reduce": 2 * size * others,  # reduced in parts, the parts gathered
    "reduce-scatter": size * group * others,
    "all-to-all": size * others,
  }.get(kind, size)
  pairs = re.findall(r"\{(\d+),(\d+)\}", op.text.partition("_pairs=")[2])
  # Not the first pair: in a ring of devices it may be the one that closes it.
  backward = len(pairs) > 1 and int(pairs[1][1]) < int(pairs[1][0])
  source = re.search(r'op_name="([^"]*)"', op.text)
  return Collective(
    kind, sent * times, group, times, backward, source[1] if source else ""
  )


def _group(text: str) -> int:
  """The number of devices that take part together."""
  listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
  if listed:
    return max(len(listed[1].split(",")), 1)
  tiled = re.search(r"replica_groups=\[\d+,(\d+)\]", text)
  if tiled:
    return int(tiled[1])
  axes = re.search(r"replica_groups=mesh\[([^\]]*)\].*? ?\{([^}]*)\}", text)
  if axes:
    sizes = {a: int(n) for a, n in re.findall(r"'(\w+)'=(\d+)", axes[1])}
    # 'axis_0' whole, or a part of it: 'axis_0':(1)2
    used = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])
    return math.prod(int(part) if part else sizes[a] for a, part in used)
  return 1


def _stride(body: dict[str, Instruction], index: int) -> int:
  """The step of a loop's counter, element `index` of its state."""
  root = next((i for i in body.values() if i.root), None)
  if root is None or index >= len(root.operands):
    return 1
  step = body.get(root.operands[index])
  if step is None or step.opcode != "add":
    return 1
  for name in step.operands:
    value = body.get(name)
    if value is not None and value.opcode == "constant":
      return max(int(re.match(r"\d+", value.text)[0]), 1)  # type: ignore[index]
  return 1


def _called(op: Instruction) -> list[str]:
  names = _CALLED.findall(op.text)
  branches = _BRANCHES.search(op.text)
  if branches:
    names += re.findall(r"%?([\w.-]+)", branches[1])
  return names


def _operands(rest: str) -> str:
  """The text up to the parenthesis that closes the operands."""
  depth = 1
  for at, letter in enumerate(rest):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return rest[:at]
  return rest


def _shapes(text: str) -> Iterator[Shape]:
  for kind, dims, layout in _SHAPE.findall(text):
    if kind in _BYTES:
      sizes = tuple(int(d) for d in dims.split(",") if d)
      space = re.search(r"S\((\d+)\)", layout)
      large = space is None or space[1] == "0"
      yield Shape(_BYTES[kind] * math.prod(sizes), large, sizes)
