"""`label RUN --worker`: workers and the run itself make the labels that the run makes alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from processes import _start_server, free_port
from tiny import Capture

from noisystudent import self_training
from noisystudent.console import Progress
from noisystudent.errors import Stopped
from noisystudent.run.graph import Graph
from noisystudent.run.rundir import LabelsDir, RunDir
from noisystudent.self_training.ray_tasks import shares
from noisystudent.self_training.worker import label_as_worker

FORK = multiprocessing.get_context("forkserver")


class StoppedIn(Progress):
    """A signal comes when a stage has made the first of its units."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        if task == self.stage:
            self.stop.signal = "SIGTERM"


@pytest.fixture
def labeling(images: Path, finished: Path, tmp_path: Path) -> Path:
    """A run that was stopped while it labelled, with no part of three."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "iteration-1")
    with pytest.raises(Stopped):
        self_training.self_train(tiny.config(images), out, progress=StoppedIn("labels-1"))
    return out


def labels(run: Path) -> dict[str, str]:
    return {path.name: tiny.digest(path) for path in LabelsDir(RunDir(run).iteration(1).labels).parts()}


def test_a_run_finds_the_labels_of_its_workers(
    images: Path, finished: Path, labeling: Path, tmp_path: Path
) -> None:
    _start_server()
    words = ("label", labeling, "--worker")
    workers = [FORK.Process(target=tiny.child, args=(words, tmp_path / f"{n}.log")) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    printed = [path.read_text() for path in sorted(tmp_path.glob("*.log"))]
    assert [worker.exitcode for worker in workers] == [0, 0], printed
    assert all("every part is labelled" in text for text in printed)
    assert labels(labeling) == labels(finished) and len(labels(labeling)) == 3
    made = {path: path.stat().st_mtime_ns for path in (labeling / "iteration-1" / "labels").glob("part-*")}
    tiny.run(tiny.config(images), labeling)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "nothing was labelled again"
    model = "iteration-1/student"
    assert tiny.weights(labeling, model) == tiny.weights(finished, model)


def test_a_worker_labels_for_a_filter_before_there_are_folds(images: Path, tmp_path: Path) -> None:
    config = tiny.config(images, ("filter", tiny.RECIPE["teacher"]), ("folds", 2))
    with pytest.raises(Stopped):
        self_training.self_train(config, tmp_path / "run", progress=StoppedIn("filter-labels"))
    with pytest.raises(Stopped, match="filter-labels is labelled, and labels-1 comes later"):
        label_as_worker(config, tmp_path / "run")
    assert len(LabelsDir(RunDir(tmp_path / "run").iteration(1).filter_labels).parts()) == 3
    assert not list((tmp_path / "run").rglob("out-of-fold*"))


def test_a_worker_says_when_there_is_nothing_to_label(
    finished: Path, labeling: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert "nothing is left to label" in tiny.output(capsys, "label", finished, "--worker")
    shutil.rmtree(labeling / "iteration-1")
    line = tiny.refused(capsys, Stopped.exit_code, "label", labeling, "--worker")
    assert "labels-1 has not begun" in line
    shutil.rmtree(labeling / "iteration-0")
    assert "teacher comes first" in tiny.refused(capsys, Stopped.exit_code, "label", labeling, "--worker")


def damage_teacher(run: Path) -> None:
    """Change the signs in its last layer; the file keeps its size."""
    path = RunDir(run).iteration(0).model("teacher").weights
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    first, last = json.loads(content[8:start])["fc.weight"]["data_offsets"]
    for at in range(start + first + 3, start + last, 12):
        content[at] ^= 0x80
    path.write_bytes(content)


def test_a_worker_labels_with_no_damaged_teacher(labeling: Path, capsys: Capture) -> None:
    damage_teacher(labeling)
    line = tiny.refused(capsys, Stopped.exit_code, "label", labeling, "--worker")
    assert "teacher: model.safetensors is damaged; start `run`" in line
    assert labels(labeling) == {}


def test_a_run_keeps_no_labels_of_a_damaged_teacher(
    images: Path, finished: Path, labeling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_teacher(labeling)
    with monkeypatch.context() as old:
        old.setattr(Graph, "damage_before", lambda *_: None)
        assert label_as_worker(tiny.config(images), labeling)
    assert labels(labeling).keys() == labels(finished).keys() and labels(labeling) != labels(finished)
    lines = tiny.run(tiny.config(images), labeling)
    assert labels(labeling) == labels(finished)
    assert [line for line in lines if "so the labels are made again; kept in" in line]
    assert "labels-1: moved back from superseded/" not in lines


def test_wrong_calls_of_a_worker(finished: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    call = ("label", finished, "--worker")
    assert "--out is given" in tiny.refused(capsys, 2, *call, "--out", tmp_path / "labels")
    assert "--unlabeled is given" in tiny.refused(capsys, 2, *call, "--unlabeled", images / "pool")
    assert "--pseudo_label.flip is given" in tiny.refused(capsys, 2, *call, "--pseudo_label.flip", "true")
    assert "is not a run directory" in tiny.refused(capsys, 2, "label", tmp_path / "none", "--worker")
    assert "--out is missing" in tiny.refused(capsys, 2, "label", finished, "--unlabeled", images / "pool")
    assert "--unlabeled is missing" in tiny.refused(capsys, 2, "label", finished, "--out", tmp_path / "out")


@pytest.mark.slow
# submitit does not wait for a job that was cancelled.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_of_submitit_make_the_labels_of_a_run(finished: Path, labeling: Path, tmp_path: Path) -> None:
    """Its executor for one machine starts each job as a process of its own, as an array of SLURM does."""
    submitit = pytest.importorskip("submitit", reason="submitit is not installed")
    executor = submitit.LocalExecutor(folder=tmp_path / "jobs")
    executor.update_parameters(timeout_min=10)
    command = [sys.executable, "-m", "noisystudent", "label", str(labeling), "--worker"]
    jobs = [executor.submit(submitit.helpers.CommandFunction(command)) for _ in range(3)]
    jobs[0].cancel()
    assert all("every part is labelled" in job.result() for job in jobs[1:])
    assert labels(labeling) == labels(finished)


@pytest.mark.slow
def test_two_nodes_of_torchrun_label_as_one_process(
    images: Path, finished: Path, labeling: Path, tmp_path: Path
) -> None:
    """As examples/cluster/slurm-run-nodes.sbatch starts them; both nodes are this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--max-restarts=0", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}"]
    command += ["--rdzv-id=1", "--local-addr=localhost", "-m", "noisystudent", "run", "--out", str(labeling)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    nodes = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [node.wait(400) for node in nodes] == [0, 0]
    assert labels(labeling) == labels(finished)
    assert (labeling / "verdict.json").is_file()


@pytest.mark.parametrize(
    ("machines", "tasks", "expected"),
    [
        ([{"CPU": 8}], None, (1, 8, 0)),
        ([{"CPU": 2}], 2, (2, 1, 0)),
        ([{"CPU": 8}, {"CPU": 8}], 1, (1, 8, 0)),
        ([{"CPU": 64}, {"CPU": 4}], None, (2, 4, 0)),
        ([{}, {"CPU": 16}], 4, (4, 4, 0)),
        ([{}], None, (1, 1, 0)),
        ([{"CPU": 128}, {"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}], None, (8, 2, 1)),
        ([{"CPU": 2, "GPU": 8}], None, (8, 1, 1)),
    ],
)
def test_a_task_of_ray_fits_on_the_smallest_machine(
    machines: list[dict[str, float]], tasks: int | None, expected: tuple[int, int, int]
) -> None:
    """Ray would wait for ever for a machine that is large enough."""
    assert shares(machines, tasks) == expected


@pytest.mark.slow
def test_tasks_of_ray_make_the_labels_of_a_run(finished: Path, labeling: Path, capsys: Capture) -> None:
    pytest.importorskip("ray", reason="ray is not installed; pip install 'noisystudent[ray]'")
    text = tiny.output(capsys, "label", labeling, "--engine", "ray", "--tasks", 2)
    assert "2 tasks of Ray" in text and "every part is labelled" in text
    assert labels(labeling) == labels(finished)
