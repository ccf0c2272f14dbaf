"""The files in examples/cluster/ are valid, call the command line, and start again what was stopped."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from noisystudent import recipes
from noisystudent.cli import app
from noisystudent.cli.fields import take_fields

FOLDER = Path(__file__).parents[1] / "examples" / "cluster"
PAGE = FOLDER.parents[1] / "docs" / "cluster.md"
SCRIPTS = sorted([*FOLDER.glob("*.sbatch"), *FOLDER.glob("*.sh")])
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
RESTARTED = 75
# Programs of a cluster: those that start a command do so, and all write their arguments to $CALLS.
PROGRAMS = {
    "noisystudent": 'echo noisystudent "$@" >> $CALLS; '
    "[ $(grep -c ^noisystudent $CALLS) -gt $TIMES ] || exit 75",
    "srun": '[ "$1" = torchrun ] || exec "$@"; while [ "$1" != noisystudent ]; do shift; done; exec "$@"',
    "ssh": 'shift; exec bash -c "$*"',
    "scontrol": 'echo scontrol "$@" >> $CALLS; echo node1; echo node2',
}
ARGUMENTS = {
    "slurm-run.sbatch": ["--labeled", "photos/labeled", "--unlabeled", "photos/pool"],
    "slurm-run-nodes.sbatch": ["--labeled", "photos/labeled", "--unlabeled", "photos/pool"],
    "slurm-ablate.sbatch": ["ablation-folder", "--labeled", "photos/labeled", "--unlabeled", "photos/pool"],
}


def parse(words: Sequence[str]) -> None:
    """Parse a command as `noisystudent` does; an unknown or missing flag raises."""
    assert words[0] == "noisystudent"
    _, rest = take_fields(words[1:])
    app.parse_args(rest, exit_on_error=False, print_error=False)


def calls(script: Path, folder: Path, times: int) -> tuple[int, list[list[str]]]:
    """Run a script whose command is stopped `times` times; returns its exit code and the calls it made."""
    for name, text in PROGRAMS.items():
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    slurm = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_NUM_NODES")
    environment = {name: "2" for name in slurm} | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
        "TIMES": str(times),
        "PAUSE": "0",
        "HOSTS": "node1",
        "RUN": "runs/photos",
        "OUT": "runs/ablation",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    command = ["bash", str(script), *ARGUMENTS.get(script.name, [])]
    code = subprocess.run(command, env=environment, check=False, cwd=folder, timeout=60).returncode
    return code, [line.split() for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_valid_and_calls_the_command_line_rightly(script: Path, tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    code, made = calls(script, tmp_path, 0)
    assert code == 0
    commands = [words for words in made if words[0] == "noisystudent"]
    assert commands, "it calls the command line"
    for words in commands:
        parse(words)
    assert not [words for words in made if words[:2] == ["scontrol", "requeue"]]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_starts_again_what_was_stopped(script: Path, tmp_path: Path) -> None:
    code, made = calls(script, tmp_path, 1)
    requeued = [words for words in made if words[:2] == ["scontrol", "requeue"]]
    if script.suffix == ".sh":
        assert code == 0 and len([words for words in made if words[0] == "noisystudent"]) == 2
    elif script.name != "slurm-run-nodes.sbatch":  # torchrun has no exit code of its own for this
        assert code == RESTARTED and len(requeued) == 1


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_a_job_that_calls_the_command_line_rightly(manifest: Path) -> None:
    job: dict[str, Any] = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "podFailurePolicy needs it"
    rules = {
        (rule["action"], *rule.get("onExitCodes", {}).get("values", []))
        for rule in job["spec"]["podFailurePolicy"]["rules"]
    }
    assert ("Ignore", RESTARTED) in rules and ("FailJob", 2) in rules
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        parse(container["command"])
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_an_indexed_job_has_as_many_pods_as_workers() -> None:
    spec = yaml.safe_load((FOLDER / "kubernetes-label.yaml").read_text(encoding="utf-8"))["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] > spec["maxFailedIndexes"]


def test_the_page_names_every_file() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert {path.name for path in FOLDER.iterdir() if path.name not in text} == set()


def test_the_matrix_of_the_example_is_shipped() -> None:
    for file in (PAGE, FOLDER / "slurm-ablate.sbatch"):
        named = re.findall(r"slurm-ablate\.sbatch (\S+) --", file.read_text(encoding="utf-8"))
        assert named and set(named) <= set(recipes.matrices())
