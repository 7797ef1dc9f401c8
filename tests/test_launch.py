"""The recipes of experiments/launch: one fit command, and its exit statuses treated as their README says."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = sorted(path for path in ROOT.glob("experiments/**/*") if path.suffix in (".sh", ".sbatch"))
MANIFESTS = sorted(LAUNCH.glob("kubernetes*.yaml"))
SKYPILOT = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text("utf-8"))
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "4", "SLURM_NNODES": "1"}

# Stands in for a program: keeps its arguments and its place among the nodes, and ends with a status of one's choice.
RECORDER = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    given = {{name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")}}
    log.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], given]) + "\\n")
sys.exit(int(os.environ.get("STATUS_OF_" + os.path.basename(sys.argv[0]), "0")))
"""


def recorded(
    script: str, folder: Path, stand_ins: list[str], environment: dict[str, str]
) -> tuple[int, list[tuple[str, list[str], dict[str, str]]]]:
    """The exit status of a bash script, and every call of the programs that `stand_ins` names."""
    binaries, log = folder / "bin", folder / "calls"
    binaries.mkdir()
    for name in stand_ins:
        (binaries / name).write_text(RECORDER.format(python=sys.executable, log=str(log)), "utf-8")
        (binaries / name).chmod(0o755)
    environment = {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)} | environment
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=30
    )
    assert log.exists(), done.stderr
    return done.returncode, [tuple(json.loads(line)) for line in log.read_text().splitlines()]


def fit_of(arguments: list[str]) -> list[str]:
    """The fit command in a program's arguments; the image has the configurations at /configs."""
    start = arguments.index("fit")
    assert start == 0 or arguments[start - 2 : start] == ["-m", "inscp"]
    return [argument.removeprefix("/") for argument in arguments[start:]]


def fit_command(trainer: str, nodes: int = 1) -> list[str]:
    configs = ["--config", "configs/llama3_8b_zh_tw.yaml", "--config", f"configs/trainer/{trainer}.yaml"]
    return ["fit", *configs, "--trainer.devices", "8", "--trainer.num_nodes", str(nodes), "--ckpt_path", "last"]


def job_of(manifest: Path) -> dict[str, Any]:
    return next(part for part in yaml.safe_load_all(manifest.read_text("utf-8")) if part["kind"] == "Job")


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


def test_the_configurations_that_recipes_name_are_there() -> None:
    recipes = [path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch", ".yaml")]
    named = {name for recipe in recipes for name in re.findall(r"configs/[\w/]+\.yaml", recipe.read_text("utf-8"))}
    trainers = {"configs/trainer/fsdp_8gpu.yaml", "configs/trainer/multi_node.yaml"}
    assert named == {"configs/llama3_8b_zh_tw.yaml", *trainers}
    folders_there = [ROOT / name for name in sorted(named) if (ROOT / name).parent.is_dir()]
    assert [path for path in folders_there if not path.is_file()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_of_the_experiments_is_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True).stderr == b""


# --- one fit command


def test_slurm_starts_the_fit_command(tmp_path: Path) -> None:
    script = (LAUNCH / "slurm.sbatch").read_text("utf-8")
    _, [(_, arguments, _)] = recorded(script, tmp_path, ["srun"], SLURM)
    assert fit_of(arguments) == fit_command("fsdp_8gpu")


def test_slurm_on_two_nodes(tmp_path: Path) -> None:
    script = (LAUNCH / "slurm.sbatch").read_text("utf-8")
    several = SLURM | {"SLURM_NNODES": "2", "TRAINER": "configs/trainer/multi_node.yaml"}
    _, [(_, arguments, _)] = recorded(script, tmp_path, ["srun"], several)
    assert fit_of(arguments) == fit_command("multi_node", 2)


def test_torchrun_starts_the_fit_command(tmp_path: Path) -> None:
    script = (LAUNCH / "torchrun.sh").read_text("utf-8")
    _, [(_, arguments, _)] = recorded(script, tmp_path, ["python"], {})
    assert fit_of(arguments) == fit_command("fsdp_8gpu")
    assert arguments[arguments.index("--nproc-per-node") + 1] == "8"


def test_torchrun_on_two_nodes_needs_the_address_of_the_first(tmp_path: Path) -> None:
    script = (LAUNCH / "torchrun.sh").read_text("utf-8")
    several = {"NODES": "2", "TRAINER": "configs/trainer/multi_node.yaml"}
    bare = {"PATH": os.environ["PATH"]} | several  # Lightning leaves its MASTER_ADDR in the tests' own environment
    done = subprocess.run(["bash", "-c", script], env=bare, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "MASTER_ADDR" in done.stderr
    _, [(_, arguments, _)] = recorded(script, tmp_path, ["python"], several | {"MASTER_ADDR": "one"})
    assert fit_of(arguments) == fit_command("multi_node", 2)
    assert arguments[arguments.index("--rdzv-endpoint") + 1] == "one:29500"


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_starts_the_fit_command(manifest: Path) -> None:
    container = container_of(job_of(manifest))
    values = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    arguments = [re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], argument) for argument in container["args"]]
    several = "multi_node" in manifest.stem
    assert fit_of(arguments) == (fit_command("multi_node", 2) if several else fit_command("fsdp_8gpu"))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8


def test_skypilot_starts_the_fit_command_and_tells_every_node_its_place(tmp_path: Path) -> None:
    activate = tmp_path / "inscp" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    given = {name: value for name, value in SKYPILOT["envs"].items() if value is not None}
    given |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    given |= {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    given |= {"TRAINER": "configs/trainer/multi_node.yaml", "STATUS_OF_python": "75"}
    status, [(_, arguments, environment)] = recorded(SKYPILOT["run"], tmp_path, ["python"], given)
    assert status == 75
    assert fit_of(arguments) == fit_command("multi_node", 2)
    assert environment == {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "1"}


# --- 75 starts again, 2 does not


@pytest.mark.parametrize("status", [0, 1, 2, 75, 143])
def test_slurm_puts_the_job_back_after_75_alone_and_hands_the_status_on(status: int, tmp_path: Path) -> None:
    script = (LAUNCH / "slurm.sbatch").read_text("utf-8")
    ended, calls = recorded(script, tmp_path, ["srun", "scontrol"], SLURM | {"STATUS_OF_srun": str(status)})
    assert ended == status
    assert [arguments for name, arguments, _ in calls if name == "scontrol"] == (
        [["requeue", "4711"]] if status == 75 else []
    )


def test_slurm_asks_for_the_signal_and_for_one_task_a_gpu() -> None:
    options = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", (LAUNCH / "slurm.sbatch").read_text("utf-8"), re.MULTILINE)
    asked = dict(options)
    assert asked["signal"] == "SIGUSR1@120"  # without B: it would reach the script alone
    assert {"requeue", "open-mode"} <= asked.keys()
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "8"


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_counts_no_75_and_gives_up_at_2(manifest: Path) -> None:
    job = job_of(manifest)
    pod = job["spec"]["template"]["spec"]
    actions = {
        tuple(rule["onExitCodes"]["values"]): rule["action"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if rule.get("onExitCodes", {}).get("containerName") == container_of(job)["name"]
    }
    assert actions == {(2,): "FailJob", (75,): "Ignore"}
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_kubernetes_pods_know_their_number_and_the_first_one() -> None:
    manifest = LAUNCH / "kubernetes_multi_node.yaml"
    job = job_of(manifest)
    service = next(part for part in yaml.safe_load_all(manifest.read_text("utf-8")) if part["kind"] == "Service")
    variables = {variable["name"]: variable for variable in container_of(job)["env"]}
    nodes = job["spec"]["completions"]
    assert (job["spec"]["parallelism"], variables["NODES"]["value"]) == (nodes, str(nodes))
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert variables["MASTER_ADDR"]["value"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert "job-completion-index" in variables["NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert not {"LOCAL_RANK", "RANK", "WORLD_SIZE"} & variables.keys()


def test_skypilot_recovers_from_75_alone() -> None:
    assert SKYPILOT["resources"]["job_recovery"] == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}


WORKER = """
import os, signal, sys, time
from pathlib import Path

if os.environ.get("WRONG_INPUT"):
    sys.exit(2)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
Path(f"ready{os.environ['RANK']}").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("status", [75, 2])
@pytest.mark.skipif(shutil.which("pkill") is None, reason="no pkill")
def test_torchrun_ends_as_its_workers_do(status: int, tmp_path: Path) -> None:
    package, python = tmp_path / "inscp", tmp_path / "python"
    package.mkdir()
    (package / "__init__.py").touch()  # or the real one would be found first
    (package / "__main__.py").write_text(WORKER, "utf-8")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', "utf-8")
    python.chmod(0o755)
    given = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}
    given |= {"GPUS": "2"} | ({"WRONG_INPUT": "1"} if status == 2 else {})
    command = ["bash", LAUNCH / "torchrun.sh"]
    recipe = subprocess.Popen(command, cwd=tmp_path, env=given, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while status == 75 and len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        if status == 75:
            recipe.send_signal(signal.SIGUSR1)
        assert recipe.wait(60) == status
    finally:
        recipe.terminate()
