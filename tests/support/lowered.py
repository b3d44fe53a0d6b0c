"""Steps small enough to compile, and what is looked for in their text."""

import dataclasses
import re
from typing import Any

import jax
from jax.extend import core

from fs_jax import config
from tests.support import synthetic

B, TILE = 96, 6  # B: of no other dimension of these steps; nor B / 8, B / 4


def step(stage="fast", *, chunk=TILE, **fields: Any) -> config.Config:
  """A stage with a ring, for eight devices of which two hold each parameter."""
  sizes = {"width": 64, "hidden": 128}
  tower = synthetic.vision(**sizes)
  defaults: dict[str, Any] = {
    "fast": config.Fast(
      tower, config.Text(synthetic.stack(**sizes)), embed=16, chunk=chunk
    ),
    "slow": None if stage == "fast" else synthetic.slow(levels=1),
    "mesh": config.Mesh(fsdp=2),
    "train": {"batch_size": B},
    "optim": {"ema": 0.9},
  }
  return synthetic.cfg(stage, **defaults | fields)


def meant_for(cfg: config.Config, topology: str, slices=1) -> config.Config:
  mesh = dataclasses.replace(cfg.mesh, topology=topology, slices=slices)
  return dataclasses.replace(cfg, mesh=mesh)


def tables(text: str, rows: int) -> set[str]:
  """Shapes of all pairs of a batch: [B,B], or a device's part, [B / n,B].

  `rows` is B: chosen so that neither it nor its parts are another dimension.
  """
  parts = {rows // n for n in (1, 2, 4, 8)}
  found = set()
  for kind, dims in re.findall(r"\b([a-z]+\d+)\[([\d,]+)\]", text):
    sizes = [int(d) for d in dims.split(",")]
    whole = sizes.count(rows)
    if whole and (whole > 1 or any(s in parts for s in sizes if s != rows)):
      found.add(f"{kind}[{dims}]")
  return found


def inner(jaxpr):
  """The equations of a jaxpr and of all that it calls."""
  for equation in jaxpr.eqns:
    yield equation
    for leaf in jax.tree.leaves(
      equation.params, is_leaf=lambda x: hasattr(x, "eqns")
    ):
      if isinstance(leaf, core.ClosedJaxpr):
        yield from inner(leaf.jaxpr)
      elif isinstance(leaf, core.Jaxpr):
        yield from inner(leaf)
