"""Stages: their states, superseded versions, and a kill at every file operation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from kills import Killed, kill_after
from small_stages import content, forbidden, make
from tiny import Remembered

from noisystudent.console import Progress
from noisystudent.errors import InputError, RunError
from noisystudent.run import files
from noisystudent.run.lock import lock
from noisystudent.run.record import read_record, write_record
from noisystudent.run.stages import State, Status, run_stage, state

# --- states ---


def test_a_stage_goes_from_absent_to_done_and_is_then_skipped(run: Path, kind: str) -> None:
    stage, work = make(run, kind, "one")
    assert state(stage) == State(Status.ABSENT)
    assert run_stage(stage, work, Progress()) == {"version": "one"}
    assert state(stage) == State(Status.DONE)
    assert content(stage) == {"one"}
    progress = Remembered()
    assert run_stage(stage, forbidden, progress) == {"version": "one"}
    assert progress.lines == [f"{kind}: done before, skipped"]
    record = json.loads(stage.record.read_text())
    assert record["name"] == kind and record["fingerprint"] == stage.fingerprint
    assert record["inputs"] == stage.inputs and record["status"] == "done"
    assert record["seconds"] >= 0 and record["finished"].endswith("+00:00")


def test_interrupted_work_is_called_again_with_the_files_it_left(run: Path) -> None:
    stage, work = make(run, "folder", "one")

    def dies() -> None:
        (stage.path / "half").write_text("kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, dies, Progress())
    assert state(stage) == State(Status.PARTIAL)
    progress = Remembered()
    run_stage(stage, work, progress)
    assert progress.lines == ["folder: interrupted before, resumed"]
    assert (stage.path / "half").read_text() == "kept"


def test_other_inputs_make_a_stage_stale_and_are_named(run: Path, kind: str) -> None:
    (old, work), (new, _) = make(run, kind, "one"), make(run, kind, "two")
    run_stage(old, work, Progress())
    assert state(new) == State(Status.STALE, ("config",))
    grown = dataclasses.replace(new, inputs={**old.inputs, "seed": "1"})
    assert state(grown) == State(Status.STALE, ("seed",))
    assert state(dataclasses.replace(new, inputs=old.inputs)) == State(Status.STALE, ("stage format",))


def test_state_changes_nothing_on_disk(run: Path, kind: str) -> None:
    stage, work = make(run, kind, "one")
    before = sorted(run.rglob("*"))
    state(stage)
    assert sorted(run.rglob("*")) == before
    run_stage(stage, work, Progress())
    before = sorted(run.rglob("*"))
    state(make(run, kind, "two")[0])
    assert sorted(run.rglob("*")) == before


def test_a_deleted_result_is_made_again(run: Path) -> None:
    stage, work = make(run, "file", "one")
    run_stage(stage, work, Progress())
    stage.path.unlink()
    assert state(stage) == State(Status.DAMAGED, problems=("iteration-1/chosen.parquet is missing",))
    run_stage(stage, work, Progress())
    assert state(stage) == State(Status.DONE) and content(stage) == {"one"}


def test_work_that_writes_nothing_is_an_error_and_not_done(run: Path) -> None:
    stage, _ = make(run, "file", "one")
    with pytest.raises(RunError, match=r"file ended without writing .*chosen\.parquet"):
        run_stage(stage, lambda: None, Progress())
    assert state(stage) == State(Status.PARTIAL)


# --- superseded ---


def test_a_stale_stage_is_superseded_and_moved_back(run: Path, kind: str) -> None:
    (one, work_one), (two, work_two) = make(run, kind, "one"), make(run, kind, "two")
    progress = Remembered()
    run_stage(one, work_one, Progress())
    run_stage(two, work_two, progress)
    superseded = run / "superseded" / f"{kind}-{one.fingerprint[:8]}"
    assert progress.lines == [f"{kind}: made from other inputs (config); moved to {superseded}"]
    assert content(two) == {"two"} and superseded.is_dir()
    for stage, version in [(one, "one"), (two, "two"), (one, "one")]:
        assert run_stage(stage, forbidden, Progress()) == {"version": version}
        assert content(stage) == {version} and state(stage) == State(Status.DONE)
    assert [folder.name for folder in (run / "superseded").iterdir()] == [f"{kind}-{two.fingerprint[:8]}"]


def test_a_superseded_partial_stage_is_resumed(run: Path) -> None:
    (one, work_one), (two, work_two) = make(run, "folder", "one"), make(run, "folder", "two")

    def dies() -> None:
        (one.path / "half").write_text("kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(one, dies, Progress())
    run_stage(two, work_two, Progress())
    progress = Remembered()
    run_stage(one, work_one, progress)
    assert progress.lines[1:] == [
        "folder: moved back from superseded/",
        "folder: interrupted before, resumed",
    ]
    assert (one.path / "half").read_text() == "kept" and content(one) == {"one"}


def test_files_of_unknown_origin_are_kept(run: Path, kind: str) -> None:
    stage, work = make(run, kind, "one")
    for number in (1, 2):
        if kind == "file":
            stage.path.parent.mkdir(exist_ok=True)
            stage.path.write_text(f"mine {number}")
        else:
            stage.path.mkdir(parents=True)
            (stage.path / "a").write_text(f"mine {number}")
        assert state(stage) == State(Status.STALE, problems=(f"{stage.record.relative_to(run)} is missing",))
        run_stage(stage, work, Progress())
        assert content(stage) == {"one"}
        files.remove(stage.path)
        files.remove(stage.record)
    kept = {file.read_text() for file in (run / "superseded").rglob("*") if file.is_file()}
    assert {"mine 1", "mine 2"} <= kept


def test_temporary_files_of_an_interrupted_write_are_ignored(run: Path) -> None:
    (one, work_one), (two, work_two) = make(run, "folder", "one"), make(run, "folder", "two")
    one.path.mkdir(parents=True)
    (one.path / ".stage.json.partial").write_text("{")
    assert state(one) == State(Status.ABSENT)
    run_stage(one, work_one, Progress())
    run_stage(two, work_two, Progress())
    files.remove(two.path)
    two.path.mkdir()
    (two.path / ".stage.json.partial").write_text("{")
    run_stage(one, forbidden, Progress())
    assert content(one) == {"one"}


def test_a_companion_file_without_a_record_is_superseded_like_the_file_itself(run: Path) -> None:
    stage, work = make(run, "file", "one")
    stage.also[0].parent.mkdir()
    stage.also[0].write_text("mine")
    assert state(stage) == State(Status.STALE, problems=(f"{stage.record.relative_to(run)} is missing",))
    run_stage(stage, work, Progress())
    assert (run / "superseded" / "file-unrecorded" / "iteration-1" / "chosen.json").read_text() == "mine"


def test_existing_files_are_not_replaced_by_superseded_ones(run: Path, kind: str) -> None:
    stage, work = make(run, kind, "one")
    run_stage(stage, work, Progress())
    write_record(stage.record, (read_record(stage.record) or {}) | {"status": "running"})
    superseded = run / "superseded" / f"{kind}-{stage.fingerprint[:8]}"
    for file in [file for file in (run / "iteration-1").rglob("*") if file.is_file()]:
        files.write_text(superseded / file.relative_to(run), "old")
    run_stage(stage, lambda: None, Progress())
    assert content(stage) == {"one"}


def test_without_a_lock_superseded_files_stay_in_the_parent_folder_of_the_stage(tmp_path: Path) -> None:
    (one, work_one), (two, work_two) = make(tmp_path, "folder", "one"), make(tmp_path, "folder", "two")
    run_stage(one, work_one, Progress())
    run_stage(two, work_two, Progress())
    assert (tmp_path / "iteration-1" / "superseded" / f"folder-{one.fingerprint[:8]}").is_dir()


def test_a_refused_second_lock_does_not_move_the_run_directory(run: Path) -> None:
    (one, work_one), (two, work_two) = make(run, "folder", "one"), make(run, "folder", "two")
    with pytest.raises(InputError), lock(run):
        raise AssertionError("locked twice")
    run_stage(one, work_one, Progress())
    run_stage(two, work_two, Progress())
    assert (run / "superseded").is_dir()


# --- kills ---


@pytest.mark.parametrize("back", [False, True], ids=["one-two", "one-two-one"])
def test_a_kill_between_any_two_file_operations_loses_nothing(tmp_path: Path, kind: str, back: bool) -> None:
    kills = 0
    for operations in range(100):
        run = tmp_path / str(operations)
        with lock(run):
            (one, work_one), (two, work_two) = make(run, kind, "one"), make(run, kind, "two")
            run_stage(one, work_one, Progress())
            if back:
                run_stage(two, work_two, Progress())
            current, other = (one, two) if back else (two, one)
            with pytest.MonkeyPatch.context() as patch:
                kill_after(operations, patch)
                try:
                    run_stage(current, forbidden if back else work_two, Progress())
                except Killed:
                    kills += 1
                else:
                    assert kills == operations and kills >= (3 if back else 7)
                    return
            run_stage(current, forbidden if back else work_two, Progress())
            assert content(current) == {"one" if back else "two"} and state(current) == State(Status.DONE)
            run_stage(other, forbidden, Progress())
            assert content(other) == {"two" if back else "one"} and state(other) == State(Status.DONE)
    raise AssertionError("the stage did not end within 100 operations")
