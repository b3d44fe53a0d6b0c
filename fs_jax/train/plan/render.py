"""Plans in words: one in lines, several as the rows of a Markdown table."""

from fs_jax.machine import hardware
from fs_jax.train.plan import plan as plans

BEGIN, END = "<!-- plan:begin -->", "<!-- plan:end -->"


def summarize(plan: plans.Plan) -> str:
  """A plan, an aspect a line."""
  m, t = plan.memory, plan.times
  chip = hardware.tpu(plan.topology)
  mesh = " x ".join(f"{axis} {n}" for axis, n in plan.mesh.items() if n > 1)
  microbatches = f" in {plan.accumulate} parts" if plan.accumulate > 1 else ""
  twice = ""
  if plan.hardware_flops > plan.model_flops:
    all_flops = plan.hardware_flops / 1e12
    twice = f", {all_flops:.1f} T with what is computed twice to save memory"
  lines = [
    f"{plan.config} on {place(plan)}: {plan.devices} chips as {mesh or 'one'}",
    f"  parameters     {plan.parameters / 1e6:.1f} M trained",
    f"  batch          {plan.batch_size}{microbatches}",
    f"  FLOPs a step   {plan.model_flops / 1e12:.1f} T{twice}",
  ]
  if t is None:
    over = m.needed - m.available
    return "\n".join(
      [
        *lines,
        f"  memory         DOES NOT FIT: needs {gib(m.needed)} of "
        f"{gib(m.available)} GiB a chip, {gib(over)} too many",
      ]
    )
  sent = ", ".join(
    f"{kind} {_bytes(n)}" for kind, n in plan.collectives.items()
  )
  lines += [
    f"  memory         fits: {gib(m.needed)} of "
    f"{gib(m.available)} GiB a chip at its peak, "
    f"{gib(m.arguments)} of them state and batch",
    *_validation_line(plan),
    f"  sent a chip    {sent or 'nothing'}",
    "  busy, seconds  "
    + ", ".join(f"{k} {v:.4f}" for k, v in t._asdict().items() if v)
    + (" (of the core, as its compiler estimates)" if t.cycles else ""),
    f"  step           {t.step:.4f} s if all of that overlaps, bound by "
    f"{t.bound}; {_serial(t):.4f} s if nothing does",
    f"  MFU            {plan.mfu:.0%} of {chip.flops / 1e12:.0f} TFLOP/s "
    "a chip",
    f"  examples/s     {plan.examples_per_second:,.0f}",
    f"  whole run      {plan.steps:,} steps: {_duration(plan)}, "
    f"{plan.device_hours:,.1f} chip-hours",
    f"  compiled in    {plan.compile_seconds} s",
  ]
  return "\n".join(lines)


def _validation_line(plan: plans.Plan) -> list[str]:
  """Memory of a validation with the state beside it, if it was compiled."""
  v = plan.validation
  if v is None:
    return []
  off = "" if plan.validates else "; train.eval_every=0 leaves it out"
  fits = "fits:" if v.fits else "DOES NOT FIT: needs"
  return [
    f"  validation     {fits} {gib(v.needed)} of {gib(v.available)} GiB a "
    f"chip at its peak{off}"
  ]


def _serial(t: plans.Times) -> float:
  """Seconds of a step that first computes, then sends: nothing overlaps."""
  return max(t.compute, t.hbm, t.cycles) + t.interconnect + t.network


def _duration(plan: plans.Plan) -> str:
  days = plan.days or 0.0
  return f"{days:.1f} days" if days >= 2 else f"{24 * days:.1f} hours"


def place(plan: plans.Plan) -> str:
  """ "v5e:2x4", or "2 x v5e:2x4" for two slices."""
  if plan.slices == 1:
    return plan.topology
  return f"{plan.slices} x {plan.topology}"


COLUMNS = (
  "config",
  "topology",
  "mesh",
  "batch",
  "M params",
  "GiB/chip of",
  "validating",
  "TFLOP/chip",
  "MB sent/chip",
  "step s",
  "bound by",
  "MFU",
  "examples/s",
  "days",
  "chip-hours",
)


def row(plan: plans.Plan) -> tuple[str, ...]:
  """A plan's cells, in the order of COLUMNS."""
  m, t = plan.memory, plan.times
  mesh = " ".join(f"{axis}={n}" for axis, n in plan.mesh.items() if n > 1)
  used = f"{gib(m.needed)} / {gib(m.available)}"
  each = plan.hardware_flops / plan.devices / 1e12
  batch = f"{plan.batch_size}"
  if plan.accumulate > 1:
    batch += f" / {plan.accumulate}"
  values = (
    plan.config.removeprefix("configs/"),
    place(plan),
    mesh or "-",
    batch,
    f"{plan.parameters / 1e6:.0f}",
    used if m.fits else f"{used}: does not fit",
    _validation_cell(plan),
    f"{each:.2f}",
  )
  if t is None:
    return (*values, *["-"] * (len(COLUMNS) - len(values)))
  return (
    *values,
    f"{sum(plan.collectives.values()) / 1e6:.0f}",
    f"{t.step:.3f}",
    t.bound,
    f"{plan.mfu:.0%}",
    f"{plan.examples_per_second:,.0f}",
    f"{plan.days:.2f}",
    f"{plan.device_hours:,.0f}",
  )


def _validation_cell(plan: plans.Plan) -> str:
  v = plan.validation
  if v is None:
    return "-"
  return gib(v.needed) if v.fits else f"{gib(v.needed)}: does not fit"


def table(rows: list[tuple[str, ...]]) -> str:
  """Rows under COLUMNS, as a Markdown table."""
  lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rewrite(text: str, table: str) -> str:
  """`text` with `table` between its markers, in place of what is there.

  Raises:
    ValueError: the markers are not there.
  """
  begin, end = text.find(BEGIN), text.find(END)
  if begin < 0 or end < begin:
    raise ValueError(
      f"launch/README.md: must hold {BEGIN} and {END}, in this order; got a "
      "text without. put both lines back where the table belongs"
    )
  return f"{text[: begin + len(BEGIN)]}\n{table}\n{text[end:]}"


def gib(n: float) -> str:
  """Bytes as GiB with two decimals."""
  return f"{n / hardware.GIB:.2f}"


def _bytes(n: float) -> str:
  return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"
