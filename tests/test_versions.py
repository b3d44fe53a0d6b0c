"""Two sets of versions: what setup.py promises is what the tests run on."""

import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
from unittest import mock

import pytest
import yaml
from packaging import requirements, specifiers, version

from launch import doctor
from tests.support import versions

ROOT = pathlib.Path(__file__).parent.parent
OLDEST, NEWEST = versions.SETS.values()
# Named in setup.py, and no part of the tests: what runs in environments of its
# own. libtpu compiles plans, and is tested where it is (make plan-test).
NO_PART = {
  *("ray", "libtpu"),
  *("faiss-cpu", "hnswlib", "open-clip-torch", "torch", "transformers"),
}


def packaged():
  """What setup.py hands to setuptools, which an environment may not have."""
  made = mock.MagicMock()
  with mock.patch.dict(sys.modules, setuptools=made):
    runpy.run_path(str(ROOT / "setup.py"))
  return made.setup.call_args.kwargs


def required():
  """(extra, requirement) of every line of setup.py."""
  kwargs = packaged()
  groups = {"": kwargs["install_requires"], **kwargs["extras_require"]}
  return [
    (extra, requirements.Requirement(line))
    for extra, lines in groups.items()
    for line in lines
  ]


def pythons(file):
  """Of the line that .ci/python reads."""
  (line,) = re.findall(r"^# python: (.*)$", (ROOT / file).read_text(), re.M)
  return line.split()


def test_lower_bounds_are_the_oldest_pins():
  pins = versions.PINS["oldest"]
  checked = set()
  for extra, line in required():
    name = doctor.normalise(line.name)
    if name in NO_PART:
      continue
    lower = [s.version for s in line.specifier if s.operator in (">=", "==")]
    assert lower == [pins[name]], f"{extra}: {line}"
    checked.add(name)
  assert "jax" in checked and "pytest" in checked


def test_what_has_no_pin_is_named():
  names = {doctor.normalise(line.name) for _, line in required()}
  for pins in versions.PINS.values():
    assert names - pins.keys() == NO_PART


def test_every_pin_is_allowed():
  for extra, line in required():
    if extra == "aot" or doctor.normalise(line.name) in NO_PART:
      continue
    for name, pins in versions.PINS.items():
      pin = pins[doctor.normalise(line.name)]
      assert pin in line.specifier, f"{name}: {pin} for {extra} {line}"


def test_the_newest_are_not_older():
  oldest, newest = versions.PINS.values()
  for name in oldest.keys() & newest.keys():
    pins = (version.Version(pins[name]) for pins in (newest, oldest))
    assert next(pins) >= next(pins), name


def test_jax_is_bounded_after_the_newest_that_is_tested():
  """Alike everywhere; a minor version removes what was deprecated."""
  pin = version.Version(versions.PINS["newest"]["jax"])
  after = f"{pin.major}.{pin.minor + 1}"
  bounds = {
    extra: line.specifier
    for extra, line in required()
    if line.name == "jax" and extra != "aot"
  }
  assert bounds.keys() == {"", "tpu", "cuda"}
  want = f">={versions.PINS['oldest']['jax']},<{after}"
  assert set(bounds.values()) == {specifiers.SpecifierSet(want)}


def test_plans_keep_the_jax_of_their_compiler():
  (pin,) = (x for extra, x in required() if (extra, x.name) == ("aot", "jax"))
  assert str(pin.specifier) == f"=={versions.PINS['oldest']['jax']}"
  recipe = (ROOT / "Makefile").read_text().split("\nplan:")[1].split("\n\n")[0]
  assert "EXTRAS=dev,aot" in recipe and NEWEST not in recipe


def test_every_python_that_is_allowed_is_tested():
  allowed = specifiers.SpecifierSet(packaged()["python_requires"])
  minors = [f"3.{minor}" for minor in range(8, 30)]
  assert pythons(OLDEST) == [x for x in minors if x in allowed]
  assert set(pythons(NEWEST)) < set(pythons(OLDEST))
  workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
  jobs = workflow["jobs"]["ci"]["strategy"]["matrix"]["include"]
  assert {(job["versions"], job["python"]) for job in jobs} == {
    (name, python)
    for name, file in versions.SETS.items()
    for python in pythons(file)
  }


def test_what_promises_bits_is_marked():
  """So that it is skipped by name where nobody has seen it hold."""
  formats = {"test_memories.py", "test_versions.py"}  # bits on a disk
  for path in (ROOT / "tests").rglob("test_*.py"):
    text = path.read_text()
    if path.name not in formats and re.search("bit.for.bit", text):
      assert "mark.bitwise" in text, path.name


def test_bits_are_promised_for_whole_sets(monkeypatch):
  for name, pins in versions.PINS.items():
    here = {package: pins[package] for package in versions.NUMERIC}
    monkeypatch.setattr(versions, "here", lambda here=here: here)
    assert versions.find_set() == name
    assert versions.describe().startswith(f"versions: the {name} (constraints")
    mixed = here | {"jax": "0.11.2"}
    monkeypatch.setattr(versions, "here", lambda mixed=mixed: mixed)
    assert versions.find_set() == ""
    text = versions.describe()
    assert "of neither" in text and "jax 0.11.2" in text


@pytest.mark.parametrize("file", [OLDEST, NEWEST])
def test_the_doctor_knows_both_sets(monkeypatch, file):
  pins = doctor.read_pins(file)
  monkeypatch.setattr(
    doctor, "_version", lambda name: pins[doctor.normalise(name)]
  )
  assert doctor.find_constraints() == file
  for name in doctor.NEEDED + doctor.DATA:
    assert doctor._package(name, pins, file)[2] == "ok"
  monkeypatch.setattr(doctor, "_version", lambda name: "0.11.2")
  assert doctor.find_constraints() == OLDEST
  assert doctor._package("jax", pins, file)[2:] == (
    "other",
    f"tests run on {pins['jax']}",
  )


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """A repository on a machine with few programs; the lines make was given."""
  programs, log = tmp_path / "bin", tmp_path / "log"
  programs.mkdir()
  shutil.copytree(ROOT / ".ci", tmp_path / "repo" / ".ci")
  for file in (OLDEST, NEWEST):
    shutil.copy(ROOT / file, tmp_path / "repo" / file)
  for name in ("bash", "dirname", "mkdir", "mktemp", "rm", "sed", "sh"):
    (programs / name).symlink_to(shutil.which(name))
  script(
    programs / "make",
    f'echo "$@" >>{log}\n'
    'if [ "$1" = "${FAIL-}" ]; then exit 1; fi\n'
    'for said; do case $said in WORKDIR=*) mkdir -p "${said#*=}"\n'
    """echo '{"rows": [1]}' >"${said#*=}/report.json";; esac; done""",
  )
  for venv in (".venv", ".venv-newest"):
    python = tmp_path / "repo" / venv / "bin" / "python"
    python.parent.mkdir(parents=True)
    script(python, f'exec {sys.executable} "$@"')
  environment = {"PATH": str(programs), "HOME": str(tmp_path), "TMPDIR": "/tmp"}
  monkeypatch.setattr(os, "environ", environment)
  return tmp_path


def script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"#!/bin/sh\n{text}\n")
  path.chmod(0o755)


def has(path, minor):
  """A Python there, as far as .ci/python looks."""
  script(path, f'case " $* " in *" {minor} "*) echo "$0";; *) exit 1;; esac')


def ci(machine, program, *arguments, **environment):
  done = subprocess.run(
    [machine / "repo" / ".ci" / program, *arguments],
    cwd=machine / "repo",
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  log = machine / "log"
  return done, log.read_text().splitlines() if log.exists() else []


def test_a_python_is_found_where_it_is(machine):
  done, _ = ci(machine, "python", NEWEST)
  assert done.returncode == 2 and not done.stdout
  assert f"{NEWEST} needs 3.12 or 3.13; found none" in done.stderr
  assert "pyenv install 3.12" in done.stderr
  of_pyenv = machine / ".pyenv" / "versions" / "3.12.9" / "bin" / "python"
  has(of_pyenv, "3.12")
  assert ci(machine, "python", NEWEST)[0].stdout.strip() == str(of_pyenv)
  script(machine / "bin" / "python3.12", "exit 127")  # pyenv's, not selected
  assert ci(machine, "python", NEWEST)[0].stdout.strip() == str(of_pyenv)
  has(machine / "bin" / "python3.13", "3.13")
  found = str(machine / "bin" / "python3.13")
  assert ci(machine, "python", NEWEST)[0].stdout.strip() == found


def test_a_python_that_will_not_do_is_refused(machine):
  has(machine / "bin" / "python3.11", "3.11")
  has(machine / "bin" / "python3.12", "3.12")
  done, _ = ci(machine, "python", NEWEST, PYTHON="python3.11")
  assert done.returncode == 2
  assert f"PYTHON=python3.11: {NEWEST} needs Python 3.12 or" in done.stderr
  assert ci(machine, "python", OLDEST, PYTHON="python3.11")[0].returncode == 0


def test_ci_runs_both_sets(machine):
  has(machine / "bin" / "python3.11", "3.11")
  has(machine / "bin" / "python3.12", "3.12")
  done, made = ci(machine, "run", PYTHON="python3.11")
  assert done.returncode == 0, done.stderr
  assert "oldest and newest versions" in done.stdout
  python = machine / "bin" / "python3.12"
  assert [re.sub("WORKDIR=[^ ]* ", "", line) for line in made] == [
    "test PYTHON=python3.11",
    f"quickstart BUDGET=small VENV=.venv CONSTRAINTS={OLDEST} "
    "PYTHON=python3.11",
    f"test-newest PYTHON={python}",
    f"quickstart BUDGET=small VENV=.venv-newest CONSTRAINTS={NEWEST} "
    f"PYTHON={python}",
  ]


def test_ci_says_what_it_left_out(machine):
  done, made = ci(machine, "run")
  assert done.returncode == 0
  assert "newest were NOT tested: no Python for them" in done.stdout
  assert [line.split()[0] for line in made] == ["test", "quickstart"]
  done, made = ci(machine, "run", "newest")  # asked for, it is no choice
  assert done.returncode == 2 and len(made) == 2


@pytest.mark.parametrize(
  ("fails", "of"), [("test", "oldest"), ("test-newest", "newest")]
)
def test_ci_names_what_failed_and_runs_the_rest(machine, fails, of):
  has(machine / "bin" / "python3.12", "3.12")
  done, made = ci(machine, "run", FAIL=fails)
  assert done.returncode == 1
  assert f"failed: {of} versions" in done.stderr
  assert {"test", "test-newest"} <= {line.split()[0] for line in made}
  assert ci(machine, "run", of, FAIL=fails)[0].returncode == 1


def test_newest_are_tested_in_an_environment_of_their_own():
  done = subprocess.run(
    ["make", "--dry-run", "test-newest", "PYTHON=none", "VENV=/nowhere"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert f"CONSTRAINTS={NEWEST}" in done.stdout
  for check in ("ruff check", "ruff format --check", "mypy --python-version"):
    assert f".venv-newest/bin/{check}" in done.stdout
  assert ".venv-newest/bin/python -m pytest" in done.stdout
  assert "/nowhere" not in done.stdout.replace("VENV=/nowhere", "")
