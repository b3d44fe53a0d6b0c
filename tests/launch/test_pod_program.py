"""The program that gives a training to an engine."""

import os
import re

import pytest
import yaml

from tests.support import inprocess, kubernetes


def launch(*arguments, stage="fast"):
  return inprocess.launch(
    "pod", f"--config=tests/support/recipe.py:{stage}", "--zone=z", *arguments
  )


def test_a_dry_run_prints_what_would_be_run():
  done = launch(
    *("--on=gke", "--image=i", "--workdir=gs://b/x", "--dry-run"),
    *("--config.mesh.topology=v5e:4x4", "--config.mesh.slices=2"),
    "--config.optim.learning_rate=0.5",
  )
  assert done.code == 0, done.err
  read = kubernetes.read(yaml.safe_load(done.out))
  assert read.metadata.name == "recipe-fast"
  (replicated,) = read.spec.replicatedJobs
  assert replicated.replicas == 2
  (container,) = replicated.template.spec.template.spec.containers
  assert container.command[2:] == [
    "launch.train",
    "--config=tests/support/recipe.py:fast",
    "--config.mesh.topology=v5e:4x4",
    "--config.mesh.slices=2",
    "--config.optim.learning_rate=0.5",
    "--workdir=gs://b/x",
  ]


@pytest.mark.parametrize(
  ("arguments", "edits"),
  [
    ("--on=tpu-vm --topology=v6e:4x4 --slices=3", ("v6e:4x4", "3")),
    ("--on=slurm --topology=h100:2x8", ("", "1")),
  ],
)
def test_a_machine_given_here_is_what_the_training_reads(arguments, edits):
  done = launch(
    *arguments.split(),
    *("--workdir=gs://b/x", "--dry-run"),
    *("--config.mesh.topology=v5e:4x4", "--config.mesh.slices=2"),
  )
  assert done.code == 0, done.err
  for name, value in zip(("topology", "slices"), edits, strict=True):
    found = re.findall(rf"--config\.mesh\.{name}=(\S*)", done.out)
    assert found[-1] == value  # the last one counts


def test_a_tool_that_is_missing(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  tools = {"tpu-vm": "gcloud", "gke": "kubectl", "slurm": "sbatch"}
  for on, tool in tools.items():
    topology = "gpu:1x1" if on == "slurm" else "v5e:4x4"
    done = launch(
      f"--on={on}", f"--topology={topology}", "--image=i", "--workdir=gs://b/x"
    )
    assert done.code == 2
    assert f"needs {tool} on PATH" in done.err and "--dry-run" in done.err


@pytest.mark.parametrize("code", [0, 1])
def test_sbatch_is_given_the_script(monkeypatch, tmp_path, code):
  sbatch = tmp_path / "sbatch"
  sbatch.write_text(f'#!/bin/bash\ncat >"$LOG"\nexit {code}\n')
  sbatch.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  monkeypatch.setenv("LOG", str(tmp_path / "log"))
  arguments = ("--on=slurm", "--topology=gpu:1x1", "--workdir=/shared/x")
  done = launch(*arguments)
  given = (tmp_path / "log").read_text()
  assert given == launch(*arguments, "--dry-run").out
  assert done.code == (2 if code else 0)
  assert ("scancel" in done.out) == (code == 0)
