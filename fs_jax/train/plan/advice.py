"""Changes that make a step fit which needs more memory than a device has."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fs_jax import config
from fs_jax.machine import console
from fs_jax.train.plan import plan, render

_TRIES = 12  # changes on top of each other, at most
# Where a table of all pairs is worth a ring: a quarter of a GB in float32.
_TABLE = 8192
_CHUNK = 512


class Change(NamedTuple):
  """Flags that change a config, and the config they make."""

  flags: str
  cfg: config.Config


def what_fits(
  name: str,
  cfg: config.Config,
  needed: int,
  say: Callable[[str], None] = console.say,
) -> list[tuple[Change, plan.Plan]]:
  """Tries changes one on top of the other, until the step fits.

  The last one fits, or nothing that was tried does. One that needs no less
  memory is not kept.
  """
  tried: list[tuple[Change, plan.Plan]] = []
  flags, least = "", needed
  for _ in range(_TRIES):
    for change in changes(cfg):
      try:
        planned = plan.plan(name, change.cfg)
      except ValueError:  # one that the mesh does not divide
        continue
      if planned.fits or planned.needed < 0.98 * least:
        break
      say(f"{change.flags}: needs {render.gib(planned.needed)} GiB, no less")
    else:
      return tried
    flags, cfg = _joined(flags, change.flags), change.cfg
    least = planned.needed
    tried.append((Change(flags, cfg), planned))
    say(f"{flags}: needs {render.gib(least)} GiB a chip")
    if planned.fits:
      return tried
  return tried


def _joined(flags: str, more: str) -> str:
  """Both lists of flags; the later value of a flag in both."""
  given = dict(f.split("=", 1) for f in f"{flags} {more}".split())
  return " ".join(f"{name}={value}" for name, value in given.items())


def changes(cfg: config.Config) -> Iterator[Change]:
  """Yields changes that may save memory, cheapest first; each of them alone."""
  recompute = _recompute(cfg)
  if recompute is not None:
    yield recompute
  train, mesh = cfg.train, cfg.mesh
  if cfg.stage != "slow" and not cfg.fast.chunk and train.batch_size >= _TABLE:
    fast = dataclasses.replace(cfg.fast, chunk=_CHUNK)
    yield _changed(cfg, f"--config.fast.chunk={_CHUNK}", fast=fast)
  if train.batch_size % (2 * train.accumulate) == 0:
    parts = 2 * train.accumulate
    yield _changed(
      cfg,
      f"--config.train.accumulate={parts}",
      train=dataclasses.replace(train, accumulate=parts),
    )
  if mesh.fsdp >= 1 and mesh.data == -1:
    yield _changed(
      cfg,
      f"--config.mesh.fsdp={2 * mesh.fsdp}",
      mesh=dataclasses.replace(mesh, fsdp=2 * mesh.fsdp),
    )
  if train.batch_size % (2 * train.accumulate) == 0:
    yield _changed(
      cfg,
      f"--config.train.batch_size={train.batch_size // 2}",
      train=dataclasses.replace(train, batch_size=train.batch_size // 2),
    )


def _changed(cfg: config.Config, flags: str, **values: Any) -> Change:
  return Change(flags, dataclasses.replace(cfg, **values))


def _recompute(cfg: config.Config) -> Change | None:
  """Every trained stack with remat="full"; None where they all have it."""
  full = lambda stack: dataclasses.replace(stack, remat="full")
  if cfg.stage == "slow":
    assert cfg.slow is not None
    slow = cfg.slow
    vision = dataclasses.replace(slow.vision, stack=full(slow.vision.stack))
    new = dataclasses.replace(slow, vision=vision, decoder=full(slow.decoder))
    stacks = ("slow.vision.stack", "slow.decoder")
    changed: dict[str, Any] = {"slow": new}
    same = new == slow
  else:
    fast = cfg.fast
    vision = dataclasses.replace(fast.vision, stack=full(fast.vision.stack))
    text = dataclasses.replace(fast.text, stack=full(fast.text.stack))
    tower = dataclasses.replace(fast, vision=vision, text=text)
    stacks = ("fast.vision.stack", "fast.text.stack")
    changed = {"fast": tower}
    same = tower == fast
  flags = " ".join(f"--config.{name}.remat=full" for name in stacks)
  return None if same else _changed(cfg, flags, **changed)
