"""What engines are given: read by their own tools, and run against fakes."""

import configparser
import dataclasses
import io
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import jax._src.clusters as clusters
import pytest
import yaml

from fs_jax.machine import errors, processes
from fs_jax.machine.pods import gke, slurm, tpu_vm
from fs_jax.machine.pods import job as jobs
from tests.support import kubernetes

COMMAND = (
  *("python", "-m", "launch.train", "--config=configs/scenes.py:fast"),
  *("--config.data.dir=gs://b/it's $HOME", "--workdir=gs://b/x"),
)
TPU = jobs.Job("demo", COMMAND, "gs://b/x", "v5e:4x4", image="i", zone="z")
GPU = dataclasses.replace(TPU, workdir="/shared/x", topology="h100:2x4")


def shellcheck(script):
  """Shellcheck's findings: none if all is well."""
  tool = pathlib.Path(sys.executable).parent / "shellcheck"
  done = subprocess.run(
    # SC2016 warns of the $ in COMMAND, which is there to be taken as it is.
    [tool, "--shell=bash", "--format=gcc", "--exclude=SC2016", "-"],
    input=script,
    capture_output=True,
    text=True,
    check=False,
  )
  return done.stdout + done.stderr


def fake(folder, name, body):
  """A program on PATH that notes its arguments, a line each time."""
  path = folder / name
  path.write_text(f'#!/bin/bash\necho "{name} $*" >>"$LOG"\n{body}\n')
  path.chmod(0o755)


@pytest.fixture
def run(tmp_path):
  """Runs a script with fakes first on PATH; returns (process, log)."""
  log = tmp_path / "log"
  log.touch()
  (tmp_path / "bin").mkdir()

  def start(script, fakes, wait=True, **env):
    for name, body in fakes.items():
      fake(tmp_path / "bin", name, body)
    process = subprocess.Popen(
      ["bash", "-c", script],
      cwd=tmp_path,
      env={
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "LOG": str(log),
        "HOME": str(tmp_path),
        "USER": "me",
        **env,
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    if wait:
      process.communicate(timeout=60)
    return process, log

  return start


def worker(script):
  """The part of a TPU VM's script that runs on every host."""
  return re.search(r"<<'WORKER'.*?\n(.*?)\nWORKER\n", script, re.DOTALL)[1]


def test_shellcheck_has_nothing_to_say():
  for slices in (1, 2):
    script = tpu_vm.script(dataclasses.replace(TPU, slices=slices, spot=True))
    assert shellcheck(script) == ""
    assert shellcheck(worker(script)) == ""
  script = slurm.script(dataclasses.replace(GPU, flags=("--time=1-0",)))
  assert shellcheck(script) == ""
  assert "SC2086" in shellcheck(script.replace('"$crashes"', "$crashes"))
  assert "SC1073" in shellcheck(script.replace("esac", ""))


# GKE: the manifest.


def manifest(**changes):
  return yaml.safe_load(gke.manifest(dataclasses.replace(TPU, **changes)))


@pytest.mark.parametrize(
  ("topology", "slices"),
  [("v5e:2x4", 1), ("v5e:4x4", 2), ("v5p:4x4x4", 1), ("v6e:16x16", 3)],
)
def test_a_jobset_is_what_kubernetes_reads(topology, slices):
  jobset = manifest(topology=topology, slices=slices, spot=True, account="a")
  read = kubernetes.read(jobset)
  (replicated,) = read.spec.replicatedJobs
  job = replicated.template.spec
  pod = job.template.spec
  (container,) = pod.containers
  chips = container.resources.limits["google.com/tpu"]
  shape = topology.partition(":")[2]
  assert replicated.replicas == slices
  assert job.parallelism == job.completions
  assert job.parallelism * chips == math.prod(map(int, shape.split("x")))
  assert container.resources.requests == container.resources.limits
  assert pod.nodeSelector["cloud.google.com/gke-tpu-topology"] == shape
  assert pod.restartPolicy == "Never"  # or podFailurePolicy is refused
  assert tuple(container.command) == COMMAND
  # What JAX needs of GKE's webhook: it serves indexed Jobs of several pods.
  assert job.completionMode == "Indexed"
  # A slice has its node pool to itself, where it is larger than a node.
  assert bool(read.metadata.annotations) == (job.parallelism > 1)


@pytest.mark.parametrize(
  "path",
  [
    "kind",
    "spec.replicatedJobs.0.replicas",
    "spec.replicatedJobs.0.template.spec.parallelism",
    "spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0.action",
    "spec.replicatedJobs.0.template.spec.template.spec.containers.0.env",
    "spec.failurePolicy.rules.0.action",
    "spec.failurePolicy.rules.1.onJobFailureReasons",
  ],
)
def test_a_jobset_with_a_mistake_is_not_read(path):
  *keys, last = (int(k) if k.isdigit() else k for k in path.split("."))
  for spoil in ("value", "name"):
    jobset = at = manifest(slices=2)
    for key in keys:
      at = at[key]
    if spoil == "value":
      at[last] = {"not": "so"}
    else:
      at[f"{last}s"] = at.pop(last)
    with pytest.raises(ValueError, match=r"Invalid|Expected|unknown|missing"):
      kubernetes.read(jobset)


def job_message(code=None, condition=None):
  """Why a Job failed, as Kubernetes' controller writes it; None: no rule."""
  job_spec = manifest()["spec"]["replicatedJobs"][0]["template"]["spec"]
  for index, rule in enumerate(job_spec["podFailurePolicy"]["rules"]):
    end = f"matching {rule['action']} rule at index {index}"
    codes = rule.get("onExitCodes", {}).get("values", [])
    if code is not None and code in codes:
      return f"Container train for pod ns/p failed with exit code {code} {end}"
    for known in rule.get("onPodConditions", []):
      if known["type"] == condition:
        return f"Pod ns/p has condition {condition} {end}"
  return None


@pytest.mark.parametrize(
  ("failure", "action"),
  [
    ({"code": errors.BAD_INPUT}, "FailJobSet"),
    ({"code": errors.DIVERGED}, "FailJobSet"),
    ({"code": errors.PREEMPTED}, "RestartJobSetAndIgnoreMaxRestarts"),
    ({"condition": "DisruptionTarget"}, "RestartJobSetAndIgnoreMaxRestarts"),
    ({"code": errors.FAILED}, None),  # JobSet's default: restart, and count
    ({"code": 134}, None),
    ({"code": 137}, None),
  ],
)
def test_what_a_jobset_does_when_a_pod_fails(failure, action):
  message = job_message(**failure)
  reason = "PodFailurePolicy" if message else "BackoffLimitExceeded"
  policy = kubernetes.read(manifest()).spec.failurePolicy
  actions = [
    rule.action
    for rule in policy.rules
    if reason in rule.onJobFailureReasons
    and any(
      re.search(p, message or "") for p in rule.onJobFailureMessagePatterns
    )
  ]
  assert actions[:1] == ([action] if action else [])
  assert policy.maxRestarts == TPU.restarts


def test_jax_numbers_the_processes_of_two_slices(monkeypatch):
  job_spec = manifest(slices=2)["spec"]["replicatedJobs"][0]["template"]["spec"]
  hosts = job_spec["parallelism"]
  (container,) = job_spec["template"]["spec"]["containers"]
  numbers = []
  for index in range(2):
    for e in container["env"]:
      monkeypatch.setenv(e["name"], e.get("value", str(index)))
    for host in range(hosts):  # as GKE's webhook does
      names = [f"demo-slice-{index}-{i}.demo" for i in range(hosts)]
      monkeypatch.setenv("TPU_WORKER_HOSTNAMES", ",".join(names))
      monkeypatch.setenv("TPU_WORKER_ID", str(host))
      assert clusters.GkeTpuCluster.get_process_count() == 2 * hosts
      numbers.append(clusters.GkeTpuCluster.get_process_id())
      if len(numbers) == 1:  # process 0 is who all others call
        assert os.environ["MEGASCALE_COORDINATOR_ADDRESS"] == names[0]
  assert numbers == list(range(2 * hosts))


# SLURM: the script, with an srun and a scontrol that only note their calls.


def test_slurm_asks_for_a_task_a_gpu():
  options = re.findall(r"#SBATCH --(\S+?)=(\S+)", slurm.script(GPU))
  asked = dict(options)
  assert asked["nodes"] == "2"
  assert asked["ntasks-per-node"] == "4"
  assert asked["gpus-per-node"] == "h100:4"
  assert asked["signal"] == "B:TERM@120"
  assert "--gpus-per-node=4\n" in slurm.script(
    dataclasses.replace(GPU, topology="gpu:2x4")
  )


# Plays four tasks of a step: each runs what srun is given, with its own fate.
SRUN = """
while [ "$1" != bash ]; do shift; done
for SLURM_PROCID in 0 1 2 3; do
  export SLURM_PROCID
  "$@" & tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "${code:-0}" # of the last
"""


@pytest.mark.parametrize(
  ("codes", "before", "code", "again"),
  [
    ("0 0 0 0", 0, errors.DONE, False),
    ("2 2 2 2", 0, errors.BAD_INPUT, False),
    ("134 2 134 134", 0, errors.BAD_INPUT, False),  # its peers gave it up
    ("134 3 134 75", 0, errors.DIVERGED, False),
    ("75 75 75 75", 0, errors.PREEMPTED, True),
    ("75 75 75 134", 99, errors.PREEMPTED, True),  # is no crash
    ("1 134 134 134", 0, 134, True),
    ("2 137 134 2", 0, 137, True),  # killed: the others lost it while saving
    ("1 1 1 1", GPU.restarts - 1, 1, True),
    ("1 1 1 1", GPU.restarts, 1, False),
  ],
)
def test_slurm_queues_again_by_exit_code(
  run, tmp_path, codes, before, code, again
):
  (tmp_path / "demo-7.crashes").write_text("1\n" * before)
  (tmp_path / "demo-7.codes").mkdir()
  (tmp_path / "demo-7.codes" / "9").write_text("2\n")  # of an earlier start
  process, log = run(
    slurm.script(GPU),
    {
      "srun": SRUN,
      "python": f'codes=({codes}); exit "${{codes[$SLURM_PROCID]}}"',
      "scontrol": "",
    },
    SLURM_JOB_ID="7",
    SLURM_JOB_NAME="demo",
  )
  text = log.read_text()
  assert ("scontrol requeue 7" in text) == again
  assert process.returncode == (0 if again else code)
  assert text.splitlines().count(f"python {' '.join(COMMAND[1:])}") == 4


def told_to_stop(run, script, python):
  """What a job whose tasks do `python` asks of SLURM once SIGTERM came."""
  process, log = run(
    script,
    {
      "srun": SRUN,
      "python": python,
      "scancel": 'touch -- "$1"',
      "scontrol": "",
    },
    wait=False,
    SLURM_JOB_ID="7",
    SLURM_JOB_NAME="demo",
  )
  while log.read_text().count("python") < 4:
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 0
  return [x for x in log.read_text().splitlines() if x.startswith("sc")]


def test_slurm_waits_for_a_checkpoint_when_told_to_stop(run):
  """The training goes on for a while after its signal, then ends with 75."""
  python = "until [ -e --signal=TERM ]; do sleep 0.05; done; sleep 0.3; exit 75"
  asked = told_to_stop(run, slurm.script(GPU), python)
  assert asked == ["scancel --signal=TERM 7", "scontrol requeue 7"]


def test_slurm_goes_on_where_nobody_hears(run):
  """Told to stop while it prepares data: ended in time, and queued again."""
  script = slurm.script(GPU)
  hasty = script.replace("patience=100", "patience=0.3")
  assert hasty != script
  python = "until [ -e --signal=KILL ]; do sleep 0.05; done; kill -9 $$"
  stops = ["scancel --signal=TERM 7", "scancel --signal=KILL 7"]
  assert told_to_stop(run, hasty, python) == [*stops, "scontrol requeue 7"]


# TPU VMs: the script, with a gcloud that plays a queued resource.

GCLOUD = """
case "$*" in
  *" describe "*) sed -n 1p states; sed -i 1d states ;;
  *" ssh "*) [[ "$*" = *"launch.train"* ]] ;;
esac
"""


def on_tpu_vm(run, tmp_path, states, job=TPU, git=""):
  (tmp_path / "states").write_text("".join(f"{s}\n" for s in states))
  fakes = {"gcloud": GCLOUD, "git": git, "sleep": ""}
  process, log = run(tpu_vm.script(job), fakes)
  called = re.findall(r"queued-resources (\w+)", log.read_text())
  verbs = [verb for verb in called if verb != "describe"]
  return process.returncode, verbs, log.read_text()


@pytest.mark.parametrize(
  ("states", "code", "verbs"),
  [
    (["", "", "WAITING_FOR_RESOURCES", "ACTIVE"], 0, ["create", "scp", "ssh"]),
    (["ACTIVE"] * 3, 0, ["scp", "ssh"]),
    (
      ["SUSPENDED", "", "PROVISIONING", "ACTIVE"],
      0,
      ["delete", "create", "scp", "ssh"],
    ),
    (["", "", "FAILED"], 1, ["create"]),
    (["", "", ""], 1, ["create"]),
  ],
)
def test_tpu_vm_makes_what_is_missing(run, tmp_path, states, code, verbs):
  assert on_tpu_vm(run, tmp_path, states)[:2] == (code, verbs)


def test_tpu_vm_orders_slices_and_reaches_all_hosts(run, tmp_path):
  job = dataclasses.replace(TPU, slices=2, spot=True, flags=("--project=p",))
  _, _, log = on_tpu_vm(run, tmp_path, ["", "", "ACTIVE"], job)
  (create,) = re.findall("queued-resources create .*", log)
  assert create.split()[2:] == [
    "demo",
    "--zone=z",
    "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--node-count=2",
    "--node-prefix=demo",
    "--spot",
    "--project=p",
  ]
  assert len(re.findall(" (?:ssh|scp) .*--node=all --worker=all", log)) == 2


def test_tpu_vm_runs_no_config_that_is_not_committed(run, tmp_path):
  code, verbs, log = on_tpu_vm(run, tmp_path, ["ACTIVE"] * 3, git="exit 1")
  assert (code, verbs) == (2, [])
  assert "git cat-file -e HEAD:configs/scenes.py" in log


def service(run, tmp_path, topology):
  """Runs the worker's part as a host would; (its systemd unit, the log)."""
  with tarfile.open(tmp_path / "demo.tar.gz", "w:gz") as tar:
    tar.addfile(tarfile.TarInfo("constraints.txt"), io.BytesIO())
  script = worker(tpu_vm.script(dataclasses.replace(TPU, topology=topology)))
  process, log = run(
    script, {"sudo": '[ "$1" != tee ] || cat >unit', "python3": ""}
  )
  assert process.returncode == 0
  return (tmp_path / "demo" / "unit").read_text(), log.read_text()


@pytest.mark.parametrize("topology", ["v5e:2x4", "v5e:4x4"])
def test_a_worker_is_a_service_that_trains(run, tmp_path, topology):
  text, log = service(run, tmp_path, topology)
  assert log.splitlines()[-1] == "sudo systemctl restart demo"
  unit = configparser.ConfigParser()
  unit.optionxform = str
  unit.read_string(text)
  assert unit["Service"]["Restart"] == "on-failure"
  stops = [str(errors.BAD_INPUT), str(errors.DIVERGED)]
  assert unit["Service"]["RestartPreventExitStatus"].split() == stops
  python = tmp_path / "demo" / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(
    f'#!/bin/bash\nprintf "%s\\n" "${processes.MULTIHOST}" "$@"\n'
  )
  python.chmod(0o755)
  started = subprocess.run(
    shlex.split(unit["Service"]["ExecStart"]),
    cwd=unit["Service"]["WorkingDirectory"],
    capture_output=True,
    text=True,
    check=True,
  )
  multihost, *arguments = started.stdout.splitlines()
  assert multihost == str(int(topology == "v5e:4x4"))
  assert tuple(arguments) == COMMAND[1:]


@pytest.mark.skipif(
  shutil.which("systemd-analyze") is None, reason="no systemd here"
)
def test_systemd_reads_the_service(run, tmp_path):
  text, _ = service(run, tmp_path, "v5e:4x4")
  path = tmp_path / "demo.service"

  def errors_of(unit):
    path.write_text(unit)
    done = subprocess.run(
      ["systemd-analyze", "verify", path],
      capture_output=True,
      text=True,
      check=False,
    )
    return [line for line in done.stderr.splitlines() if path.name in line]

  assert errors_of(text) == []
  assert errors_of(text.replace("Restart=", "Restarts="))


# What is refused.


@pytest.mark.parametrize(
  ("render", "changes", "message"),
  [
    (tpu_vm.script, {"zone": ""}, "zone: "),
    (tpu_vm.script, {"workdir": "/runs/x"}, "give --workdir=gs://"),
    (tpu_vm.script, {"topology": "h100:4x8"}, "topology: "),
    (gke.manifest, {"workdir": "runs/x"}, "give --workdir=gs://"),
    (gke.manifest, {"image": ""}, "image: "),
    (gke.manifest, {"topology": ""}, "config.mesh.topology"),
    (gke.manifest, {"topology": "v5e:2x4", "slices": 2}, "several hosts"),
    (gke.manifest, {"name": "a" * 48}, "name: must be at most 47"),
    (gke.manifest, {"command": ("python",)}, "must hold --config"),
    (
      gke.manifest,
      {"command": ("--config=/x.py:fast",)},
      "file of this repository",
    ),
    (slurm.script, {}, "give --topology=h100:4x8"),
    (slurm.script, {"topology": "gpu:1x1", "workdir": "runs/x"}, "workdir: "),
    (
      slurm.script,
      {"topology": "gpu:1x1", "workdir": "/x", "slices": 2},
      "slic",
    ),
    (
      slurm.script,
      {"topology": "gpu:1x1", "workdir": "/x", "spot": True},
      "spot",
    ),
  ],
)
def test_an_engine_refuses(render, changes, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    render(dataclasses.replace(TPU, **changes))


@pytest.mark.parametrize(
  "changes",
  [
    {"name": "Demo"},
    {"name": "demo-"},
    {"name": "1demo"},
    {"name": "a" * 64},
    {"name": "a_b"},
    {"slices": 0},
    {"restarts": -1},
    {"command": ("python", "a\nb")},
    {"flags": ("rm",)},
  ],
)
def test_a_job_refuses(changes):
  with pytest.raises(ValueError, match=r"must be|must each"):
    dataclasses.replace(TPU, **changes)


def test_the_longest_name_on_gke_still_names_its_pods():
  manifest(name="a" * 47)
  assert len("a" * 47 + "-slice-0-3-abcde") == 63
