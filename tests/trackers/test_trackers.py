"""What is logged: the numbers of metrics.jsonl, once, in the trackers' own files."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny

from noisystudent import trackers
from noisystudent.run.record import read_record, write_record
from noisystudent.run.rundir import RunDir
from noisystudent.trackers.measured import StageMetrics, measured

Point = tuple[str, int, str, float]
"""(name of the stage, step, name of the number, number)"""

STAGES = {
    "teacher": "iteration-0/teacher",
    "student-1": "iteration-1/student",
    "control-1": "iteration-1/control",
}


def expected(run: Path) -> list[Point]:
    """The numbers of a run, read from its files by hand."""
    points = []
    for stage, folder in STAGES.items():
        for text in (run / folder / "metrics.jsonl").read_text().splitlines():
            line = json.loads(text)
            points += [(stage, line["step"], name, line[name]) for name in line if name != "step"]
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        model, name, step = line.pop("model"), line.pop("set"), line.pop("iteration")
        points += [("judgement", step, f"{model}/{name}/{key}", line[key]) for key in line]
    return sorted(points)


def in_mlflow() -> list[Point]:
    """The numbers in the store, read by MLflow's own client."""
    from mlflow import MlflowClient

    client = MlflowClient()
    known = client.get_experiment_by_name("noisystudent")
    points = []
    for run in client.search_runs([known.experiment_id]):
        assert run.info.status == "FINISHED"
        for name in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, name)
            points += [(run.info.run_name.split("/")[1], one.step, name, one.value) for one in history]
    return sorted(points)


def records_of(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a log of LevelDB in blocks of 32 KiB, after 7 bytes that name the format.

    Each piece has 4 bytes of checksum, 2 of length and 1 of type: 1 whole, 2 first, 3 middle, 4 last.
    """
    at, record = 7, b""
    while at < len(content):
        left = 2**15 - at % 2**15
        if left < 7:  # no header fits: the rest of the block is empty
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        record = (record if kind in (3, 4) else b"") + content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record


def in_wandb(run: Path) -> list[Point]:
    """The numbers in the files that `wandb sync` uploads, in W&B's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    points = []
    for file in run.glob("wandb/*/wandb/offline-run-*/*.wandb"):
        records = [Record.FromString(data) for data in records_of(file.read_bytes())]
        (name,) = {record.run.display_name for record in records if record.HasField("run")}
        for record in records:
            items = record.history.item
            line = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            stage = name.split("/")[1]
            points += [(stage, line["_step"], key, line[key]) for key in line if not key.startswith("_")]
    return sorted(points)


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, and stores of the trackers that are empty."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_SILENT", "true")
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


READERS: dict[str, Callable[[Path], list[Point]]] = {"mlflow": lambda run: in_mlflow(), "wandb": in_wandb}


@pytest.mark.filterwarnings("ignore")  # of their packages
@pytest.mark.parametrize("name", READERS)
def test_a_tracker_holds_the_numbers_of_the_files_once(name: str, run: Path) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    trackers.track(run, [name])
    assert READERS[name](run) == expected(run)
    trackers.track(run, [name])
    assert READERS[name](run) == expected(run), "logged once"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_what_a_killed_process_had_begun_is_logged_anew(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    points, calls = StageMetrics.points, []

    def killed(stage: StageMetrics) -> Iterator[tuple[int, dict[str, float]]]:
        for point in points(stage):
            calls.append(point)
            if len(calls) == 8:  # in the second stage
                raise KeyboardInterrupt
            yield point

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageMetrics, "points", killed)
        trackers.track(run, [name])
    trackers.track(run, [name])
    assert READERS[name](run) == expected(run)


def test_a_stage_that_was_killed_within_a_line_hides_no_finished_one(run: Path) -> None:
    killed = run / STAGES["control-1"]
    write_record(killed / "stage.json", (read_record(killed / "stage.json") or {}) | {"status": "running"})
    (killed / "metrics.jsonl").write_text('{"step": 5, "lo')
    assert [stage.name for stage in measured(RunDir(run))] == ["teacher", "student-1", "judgement"]


def logged(capsys: tiny.Capture) -> list[Point]:
    """The numbers among the JSON lines on standard output, which holds nothing else."""
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert {line["event"] for line in lines} <= {"message", "progress", "metrics"}
    points = []
    for line in lines:
        if line.pop("event") != "metrics":
            continue
        stage = line.pop("stage")
        prefix = "" if "step" in line else f"{line.pop('model')}/{line.pop('set')}/"
        step = line.pop("step" if "step" in line else "iteration")
        points += [(stage, step, f"{prefix}{key}", line[key]) for key in line]
    return sorted(points)


def test_json_lines_hold_the_numbers_of_the_files_once(
    recipe: Path, images: Path, tmp_path: Path, capsys: tiny.Capture
) -> None:
    call = ("run", recipe, *tiny.flags(images), "--out", tmp_path / "run", "--log-format", "json")
    capsys.readouterr()
    assert tiny.call(*call) == 0
    assert logged(capsys) == expected(tmp_path / "run")
    assert tiny.call(*call) == 0
    assert logged(capsys) == [], "no stage was made again"


def test_a_tracker_that_does_not_answer_stops_no_training(
    run: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: tiny.Capture
) -> None:
    def refuse(stage: StageMetrics) -> None:
        raise ConnectionError("no route to the server")

    monkeypatch.setitem(trackers.TRACKERS, "mlflow", refuse)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    shutil.rmtree(run / "iteration-1" / "control")
    line = tiny.refused(capsys, 1, "run", "--out", run, "--tracker", "mlflow")
    assert line == "noisystudent: mlflow does not take teacher (no route to the server)"
    assert (run / "iteration-1" / "control" / "model.safetensors").is_file()


def test_a_tracker_that_is_unknown_or_missing_is_named_first(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: tiny.Capture
) -> None:
    call = ("run", *tiny.flags(images), "--out", tmp_path / "run", "--tracker")
    assert "--tracker is wandv; it must be one of mlflow, wandb; did you mean 'wandb'?" in tiny.refused(
        capsys, 2, *call, "wandv"
    )
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert "--tracker is mlflow, which needs pip install 'noisystudent[mlflow]'" in tiny.refused(
        capsys, 2, *call, "mlflow"
    )
    assert not (tmp_path / "run").exists()
