"""What would make a step fit: tried in order, each a config and its flags."""

import dataclasses
import json

import pytest

from fs_jax import config, configdict
from fs_jax.train.plan import advice, plan, table
from tests.support import lowered, synthetic
from tests.train.test_plan import made


def needs(monkeypatch, memory):
  """A compiler of which `memory(cfg)` says the GiB that a config needs."""

  def compiled(name, cfg):
    n = memory(cfg)
    found = plan.Memory(0, int(n * 2**30), 16 * 2**30)
    return made(config=name, memory=found, times=None)

  monkeypatch.setattr(plan, "plan", compiled)


def big(**fields):
  return lowered.step(
    chunk=0,
    mesh=config.Mesh(topology="v5e:2x4"),
    train={"batch_size": 16384},
    **fields,
  )


def test_advice_is_stacked_until_it_fits(monkeypatch):
  def memory(cfg):
    full = cfg.fast.vision.stack.remat == "full"
    return (
      100 - 40 * full - 30 * bool(cfg.fast.chunk) - 4 * cfg.train.accumulate
    )

  needs(monkeypatch, memory)
  said = []
  tried = advice.what_fits("x", big(), 96 * 2**30, said.append)
  assert [change.flags.split()[-1] for change, _ in tried] == [
    "--config.fast.text.stack.remat=full",
    "--config.fast.chunk=512",
    "--config.train.accumulate=2",
    "--config.train.accumulate=4",
  ]
  assert [it.fits for _, it in tried] == [False, False, False, True]
  change, _ = tried[-1]
  assert memory(change.cfg) <= 16 < memory(tried[-2][0].cfg)
  assert len(said) == 4
  assert said[-1].endswith("needs 14.00 GiB a chip")
  # A flag that is given twice counts as it stands last.
  cfg = configdict.edit(big())
  for flag in change.flags.split():
    name, _, value = flag.removeprefix("--config.").partition("=")
    *path, last = name.split(".")
    at = cfg
    for key in path:
      at = at[key]
    at[last] = int(value) if value.isdigit() else value
  assert configdict.parse(cfg) == change.cfg


def test_advice_that_does_not_help_is_left_out(monkeypatch):
  needs(monkeypatch, lambda cfg: 20 if cfg.mesh.fsdp == 1 else 10)
  said = []
  ((change, it),) = advice.what_fits("x", big(), 20 * 2**30, said.append)
  assert change.flags == "--config.mesh.fsdp=2"
  assert it.fits
  assert any("no less" in line for line in said)


def test_advice_may_end(monkeypatch):
  needs(monkeypatch, lambda cfg: 99)
  assert advice.what_fits("x", big(), 99 * 2**30, lambda _: None) == []


def test_a_change_that_the_mesh_refuses_is_passed_over(monkeypatch):
  def compiled(name, cfg):
    if cfg.fast.vision.stack.remat == "full":
      raise ValueError("not so")
    return made(memory=plan.Memory(0, 1, 2))

  monkeypatch.setattr(plan, "plan", compiled)
  tried = advice.what_fits("x", big(), 99, lambda _: None)
  assert tried[0][0].flags == "--config.fast.chunk=512"


@pytest.mark.parametrize("stage", ["fast", "slow", "distill"])
def test_changes_are_configs_of_which_their_flags_speak(stage):
  cfg = lowered.step(stage, chunk=0, mesh=config.Mesh(), slow=synthetic.slow())
  cfg = dataclasses.replace(
    cfg, train=dataclasses.replace(cfg.train, batch_size=8192)
  )
  found = list(advice.changes(cfg))
  assert len({change.flags for change in found}) == len(found) >= 4
  before = configdict.edit(cfg)
  for change in found:
    for flag in change.flags.split():
      name, _, value = flag.removeprefix("--config.").partition("=")
      at, old = configdict.edit(change.cfg), before
      for key in name.split("."):
        at, old = at[key], old[key]
      assert str(at) == value != str(old)
    # And nothing else: what a flag does not say is as it was.
    assert configdict.parse(configdict.edit(change.cfg)) == change.cfg
  again = dict(found)[found[0].flags]
  assert advice._recompute(again) is None


def test_what_fits_is_written_beside_what_does_not(
  tmp_path, monkeypatch, capsys
):
  needs(
    monkeypatch, lambda cfg: 4 if cfg.fast.vision.stack.remat == "full" else 20
  )
  table.plan_one("configs/x.py:fast", big(), str(tmp_path))
  said = capsys.readouterr().out
  flags = "--config.fast.vision.stack.remat=full"
  assert flags in said
  written = json.loads((tmp_path / "x-fast-v5e-2x4.json").read_text())
  assert not written["fits"]
  assert written["advice"]["fits"]
  assert flags in written["advice"]["flags"]
  needs(monkeypatch, lambda cfg: 20)
  table.plan_one("configs/x.py:fast", big(), str(tmp_path / "none.json"))
  assert "nothing that was tried fits" in capsys.readouterr().out
  assert json.loads((tmp_path / "none.json").read_text())["advice"] is None
