"""What `status --json` says of a run that is finished, at work, stopped, killed, or was on another host."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import Capture, output

from noisystudent.run.lock import MARKER, lock, owner_of
from noisystudent.run.record import read_record, write_record
from noisystudent.run.rundir import ModelDir, RunDir
from noisystudent.run.summary import Summary, summarize

DOCS = Path(__file__).parents[2] / "docs" / "status.md"
MODELS = {
    "teacher": "iteration-0/teacher",
    "student-1": "iteration-1/student",
    "control-1": "iteration-1/control",
}


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def logged(run: Path, model: str) -> list[dict[str, Any]]:
    """The lines of a training that have a loss."""
    lines = ModelDir(run / model).metrics.read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def interrupt(run: Path) -> int:
    """Put a run back to the moment after the first logged loss of its student; returns the step."""
    student = ModelDir(run / MODELS["student-1"])
    write_record(student.record, (read_record(student.record) or {}) | {"status": "running"})
    first = logged(run, MODELS["student-1"])[0]
    student.metrics.write_text(json.dumps(first) + "\n")
    for later in (run / "verdict.stage.json", ModelDir(run / MODELS["control-1"]).record):
        later.unlink()
    return int(first["step"])


def test_a_record_whose_verdict_is_moved_away_is_of_no_finished_run(copy: Path) -> None:
    """A kill in between leaves it: the record is moved last."""
    (copy / "verdict.json").unlink()
    assert summarize(RunDir(copy)).verdict is None and summarize(RunDir(copy)).state == "stopped"


def test_a_finished_run_has_done_all_steps_of_its_schedule(finished: Path, capsys: Capture) -> None:
    status = json.loads(output(capsys, "status", finished, "--json"))
    schedule = json.loads((finished / "schedule.json").read_text())["stages"]
    steps = {one["name"]: one["training"]["steps"] for one in schedule if one["training"]}
    assert steps == {name: logged(finished, model)[-1]["step"] for name, model in MODELS.items()}
    assert status["total_steps"] == status["total_steps_done"] == sum(steps.values())
    assert (status["state"], status["stage"]) == ("finished", "judgement")
    assert status["stages"] == status["stages_done"] == len(schedule) == 7
    verdict = json.loads((finished / "verdict.json").read_text())
    assert status["verdict"] == {name: verdict[name] for name in ("state", "sentence")}


def test_the_documented_keys_are_those_that_are_printed(finished: Path) -> None:
    documented = re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE)
    assert documented == list(summarize(RunDir(finished)).as_dict())
    states = re.findall(r"^- `(\w+)`:", DOCS.read_text(), re.MULTILINE)
    assert states == ["running", "finished", "stopped", "dead", "unknown"]


def test_a_running_training_is_where_its_metrics_say(copy: Path) -> None:
    step = interrupt(copy)
    with lock(copy):
        status = summarize(RunDir(copy))
    assert (status.state, status.stage, status.step, status.verdict) == ("running", "student-1", step, None)
    first = logged(copy, MODELS["student-1"])[-1]
    assert (status.step, status.loss) == (first["step"], first["loss"])
    assert status.total_steps_done == logged(copy, MODELS["teacher"])[-1]["step"] + step
    lengths = [one["training"] for one in json.loads((copy / "schedule.json").read_text())["stages"]]
    _, student, control = (one for one in lengths if one)
    images = student["images"] * (1 - step / student["steps"]) + control["images"]
    assert status.seconds_left == pytest.approx(images / first["images_per_second"])
    assert f"step {step} of {student['steps']}" in status.line()


def test_a_run_that_ends_in_order_is_stopped_and_a_killed_one_is_dead(copy: Path) -> None:
    interrupt(copy)
    with pytest.raises(KeyboardInterrupt), lock(copy):
        assert owner_of(copy) is not None
        raise KeyboardInterrupt
    assert owner_of(copy) is None
    assert summarize(RunDir(copy)).state == "stopped"
    kill = "import os, signal, sys; from pathlib import Path; from noisystudent.run.lock import lock\n"
    kill += "with lock(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", kill, str(copy)])
    status = summarize(RunDir(copy))
    assert (status.state, status.stage, status.seconds_left) == ("dead", "student-1", None)
    (copy / MARKER).write_text("run 1 another-host\n")
    assert summarize(RunDir(copy)).state == "unknown"


def test_a_finished_run_stays_finished_wherever_it_was_made(copy: Path) -> None:
    (copy / MARKER).write_text("run 1 another-host\n")
    assert summarize(RunDir(copy)).state == "finished"
    (copy / "schedule.json").unlink()  # older runs have none
    status = summarize(RunDir(copy))
    assert (status.state, status.total_steps, status.stages) == ("finished", None, None)


def test_a_stage_of_other_inputs_is_not_done(copy: Path) -> None:
    schedule = json.loads((copy / "schedule.json").read_text())
    for stage in schedule["stages"][-2:]:
        stage["fingerprint"] = "0" * 64
    (copy / "schedule.json").write_text(json.dumps(schedule))
    status = summarize(RunDir(copy))
    assert (status.state, status.stages_done, status.verdict) == ("stopped", 5, None)
    assert status.total_steps == 36 and status.total_steps_done == 24


@pytest.mark.parametrize("text", ["[]", '{"stages": [1]}', '{"stages": [{"name": "teacher"}]}', "{"])
def test_a_damaged_schedule_is_named(copy: Path, capsys: Capture, text: str) -> None:
    (copy / "schedule.json").write_text(text)
    assert f"{copy / 'schedule.json'} is not" in tiny.refused(capsys, 1, "status", copy, "--json")


@pytest.mark.parametrize("text", ["[]", "null", "{"])
def test_a_damaged_verdict_is_named(copy: Path, capsys: Capture, text: str) -> None:
    (copy / "verdict.json").write_text(text)
    assert f"{copy / 'verdict.json'} is not" in tiny.refused(capsys, 1, "status", copy, "--json")


def test_the_line_leaves_out_what_is_not_known() -> None:
    names = ("stage", "step", "steps", "loss", "total_steps_done", "total_steps", "seconds_left")
    nothing: dict[str, Any] = dict.fromkeys((*names, "stages", "verdict"))
    given: dict[str, Any] = {"run": "x", "state": "stopped", "stages_done": 0}
    assert Summary(**nothing, **given).line() == "stopped"
