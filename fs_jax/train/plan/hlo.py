"""What a compiled program does, read from its text: traffic and cycles.

XLA's own cost analysis counts the body of a loop once. Here everything is
multiplied by how often it runs, from the loops' own counters.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
  *("all-gather", "all-reduce", "reduce-scatter"),
  *("all-to-all", "collective-permute"),
)
SLICES = "between slices"  # of a TPU: sent through the hosts
# Neither read nor write memory themselves, or are counted where they start.
_FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
  *("while", "conditional", "call", "after-all", "partition-id"),
  *("replica-id", "opt-barrier", "custom-call", "async-update"),
}
_BYTES = {
  **{"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2},
  **{"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "s4": 1},
}
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Shape(NamedTuple):
  bytes: int
  hbm: bool  # or else in a core's own memory
  dims: tuple[int, ...]


class Instruction(NamedTuple):
  name: str
  shapes: tuple[Shape, ...]  # of the result; several of a tuple
  opcode: str
  operands: tuple[str, ...]
  text: str  # of operands and attributes
  root: bool


class Program(NamedTuple):
  computations: dict[str, dict[str, Instruction]]
  entry: str


class Collective(NamedTuple):
  """A collective, and what a device sends for it in a whole run."""

  kind: str  # one of COLLECTIVES, or SLICES
  bytes: float  # sent by a device, for all `times`
  group: int  # devices that take part together
  times: int
  backward: bool  # of a permute: to the device before, not after
  where: str  # what of the source it comes from


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
    elif inside is not None and (found := _LINE.match(line)):
      root, name, result, opcode, rest = found.groups()
      inside[name] = Instruction(
        name,
        tuple(_shapes(result)),
        opcode,
        tuple(re.findall(r"%([\w.-]+)", _operands(rest))),
        rest,
        bool(root),
      )
  return Program(computations, entry)


def executed(program: Program) -> Iterator[tuple[Instruction, str, int, bool]]:
  """(instruction, its computation, times it runs, whether inside a fusion)."""
  waiting = [(program.entry, 1, False)]
  while waiting:
    name, times, fused = waiting.pop()
    for made in program.computations.get(name, {}).values():
      yield made, name, times, fused
      each = times * trips(program, made) if made.opcode == "while" else times
      within = fused or made.opcode == "fusion"
      waiting += [(called, each, within) for called in _called(made)]


def trips(program: Program, loop: Instruction) -> int:
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


def collectives(program: Program) -> list[Collective]:
  """All that devices exchange; what is started and awaited counts once."""
  found: dict[str, Collective] = {}
  for made, _, times, fused in executed(program):
    kind = made.opcode.removesuffix("-start")
    if made.opcode == "send" and "megascale" in made.text:
      kind = SLICES
    if kind not in (*COLLECTIVES, SLICES):
      continue
    # Fused with what hides it, one appears at its start, middle and end.
    channel = re.search(r"channel_id=(\d+)", made.text) if fused else None
    one = _collective(kind, made, times)
    key = f"channel {channel[1]}" if channel else made.name
    if key not in found or one.bytes > found[key].bytes:
      found[key] = one
  return list(found.values())


def bytes_by_kind(found: list[Collective]) -> dict[str, float]:
  """Bytes that a device sends, of each kind that there is."""
  total: dict[str, float] = collections.defaultdict(float)
  for one in found:
    total[one.kind] += one.bytes
  return {k: total[k] for k in (*COLLECTIVES, SLICES) if total[k]}


def cycles(program: Program) -> float:
  """Of a TPU's core, as its compiler estimates them; 0 on other machines."""
  total = 0.0
  for made, _, times, fused in executed(program):
    said = re.search(r'"estimated_cycles":"(\d+)"', made.text)
    if said and not fused:
      total += times * int(said[1])
  return total


def hbm_bytes(program: Program) -> float:
  """Read and written in a device's large memory, caches left out.

  What is kept in a core's own memory does not count; of a fusion that reads or
  writes a slice of an array only the slice does.
  """
  total = 0.0
  for made, inside, times, fused in executed(program):
    if not fused and made.opcode not in _FREE and not _done(made):
      total += times * _moved(program, program.computations[inside], made)
  return total


def _done(made: Instruction) -> bool:
  return made.opcode.endswith("-done")


def _moved(
  program: Program, around: dict[str, Instruction], made: Instruction
) -> float:
  if made.opcode in ("copy-start", "slice-start"):
    return min(s.bytes for s in made.shapes[:2]) * sum(
      s.hbm for s in made.shapes[:2]
    )
  body = {}
  if made.opcode == "fusion":
    body = program.computations.get(next(iter(_called(made)), ""), {})
  written = float(sum(s.bytes for s in made.shapes if s.hbm))
  read = 0.0
  for index, name in enumerate(made.operands):
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
  """What a fusion reads of operand `index`, and writes of it in place.

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
  for made in body.values():
    used = names & set(made.operands)
    if not used:
      continue
    if made.opcode == "bitcast":
      names.add(made.name)
    elif made.opcode in ("dynamic-slice", "slice", "gather"):
      read += made.shapes[0].bytes
    elif made.opcode == "dynamic-update-slice" and made.operands[0] in names:
      source = body.get(made.operands[1])
      update = float(source.shapes[0].bytes) if source else 0.0
    else:
      return None, None
  return read, update


def _collective(kind: str, made: Instruction, times: int) -> Collective:
  shapes = made.shapes
  if made.opcode == "all-gather-start":
    shapes = shapes[len(shapes) // 2 :]
  elif made.opcode == "collective-permute-start":
    shapes = shapes[1:2]
  elif kind == SLICES:
    shapes = shapes[:1]
  group = 2 if kind == SLICES else _group(made.text)
  size = float(sum(s.bytes for s in shapes))
  others = (group - 1) / group
  sent = {
    "all-gather": size * others,
    "all-reduce": 2 * size * others,  # reduced in parts, the parts gathered
    "reduce-scatter": size * group * others,
    "all-to-all": size * others,
  }.get(kind, size)
  pairs = re.findall(r"\{(\d+),(\d+)\}", made.text.partition("_pairs=")[2])
  # Not of the first pair: where devices are a ring it may be the one around.
  backward = len(pairs) > 1 and int(pairs[1][1]) < int(pairs[1][0])
  where = re.search(r'op_name="([^"]*)"', made.text)
  return Collective(
    kind, sent * times, group, times, backward, where[1] if where else ""
  )


def _group(text: str) -> int:
  """Devices of a group."""
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
  """What a loop's counter, element `index` of its state, grows by."""
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


def _called(made: Instruction) -> list[str]:
  names = _CALLED.findall(made.text)
  branches = _BRANCHES.search(made.text)
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
