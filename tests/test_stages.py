"""The stage graph: states, superseded versions, a kill at every file operation."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from noisystudent import rundir
from noisystudent.errors import InputError, RunError
from noisystudent.rundir import lock
from noisystudent.stages import Stage, State, Status, fingerprint, run_stage, state

Work = Callable[[], dict[str, object] | None]


def quiet(_: str) -> None:
    pass


def forbidden() -> None:
    raise AssertionError("this work was done before")


def make(run: Path, kind: str, version: str) -> tuple[Stage, Work]:
    """A stage of `version` and the work that makes it."""
    inputs = {"config": fingerprint(version), "data": fingerprint("same")}
    path = run / "iteration-1" / ("chosen.parquet" if kind == "file" else "labels")
    beside = path.with_name("chosen.json")
    stage = Stage(kind, path, fingerprint(kind, inputs), inputs, also=(beside,) if kind == "file" else ())

    def work() -> dict[str, object]:
        if kind == "file":
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(version)
            path.write_text(version)
        else:
            for part in ("a", "b"):
                (path / part).write_text(version)
        return {"version": version}

    return stage, work


def content(stage: Stage) -> set[str]:
    files = [stage.path, *stage.also] if stage.path.suffix else [stage.path / "a", stage.path / "b"]
    return {file.read_text() for file in files}


@pytest.fixture(params=["file", "folder"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    with lock(tmp_path / "run"):
        yield tmp_path / "run"


# --- states ---


def test_a_stage_goes_from_absent_to_done_and_is_then_skipped(run: Path, kind: str) -> None:
    stage, work = make(run, kind, "one")
    assert state(stage) == State(Status.ABSENT)
    assert run_stage(stage, work, quiet) == {"version": "one"}
    assert state(stage) == State(Status.DONE)
    assert content(stage) == {"one"}
    said: list[str] = []
    assert run_stage(stage, forbidden, said.append) == {"version": "one"}
    assert said == [f"{kind}: done before, skipped"]
    record = json.loads(stage.record.read_text())
    assert record["name"] == kind and record["fingerprint"] == stage.fingerprint
    assert record["inputs"] == stage.inputs and record["status"] == "done"
    assert record["seconds"] >= 0 and record["finished"].endswith("+00:00")


def test_interrupted_work_is_called_again_on_what_it_left(run: Path) -> None:
    stage, work = make(run, "folder", "one")

    def dies() -> None:
        (stage.path / "half").write_text("kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, dies, quiet)
    assert state(stage) == State(Status.PARTIAL)
    said: list[str] = []
    run_stage(stage, work, said.append)
    assert said == ["folder: interrupted before, resumed"]
    assert (stage.path / "half").read_text() == "kept"


def test_other_inputs_make_it_stale_and_say_which(run: Path, kind: str) -> None:
    (old, work), (new, _) = make(run, kind, "one"), make(run, kind, "two")
    run_stage(old, work, quiet)
    assert state(new) == State(Status.STALE, ("config",))
    grown = dataclasses.replace(new, inputs={**old.inputs, "seed": "1"})
    assert state(grown) == State(Status.STALE, ("seed",))
    assert state(dataclasses.replace(new, inputs=old.inputs)) == State(Status.STALE, ("stage format",))


def test_state_changes_nothing_on_disk(run: Path, kind: str) -> None:
    stage, work = make(run, kind, "one")
    before = sorted(run.rglob("*"))
    state(stage)
    assert sorted(run.rglob("*")) == before
    run_stage(stage, work, quiet)
    before = sorted(run.rglob("*"))
    state(make(run, kind, "two")[0])
    assert sorted(run.rglob("*")) == before


def test_a_deleted_result_is_made_again(run: Path) -> None:
    stage, work = make(run, "file", "one")
    run_stage(stage, work, quiet)
    stage.path.unlink()
    assert state(stage) == State(Status.PARTIAL)
    run_stage(stage, work, quiet)
    assert state(stage) == State(Status.DONE) and content(stage) == {"one"}


def test_work_that_writes_nothing_is_an_error_and_not_done(run: Path) -> None:
    stage, _ = make(run, "file", "one")
    with pytest.raises(RunError, match=r"file ended without writing .*chosen\.parquet"):
        run_stage(stage, lambda: None, quiet)
    assert state(stage) == State(Status.PARTIAL)


@pytest.mark.parametrize("text", ["[]", "{}", '{"fingerprint": "a", "status": "done", "inputs": []}', "{"])
def test_a_damaged_record_is_one_clear_line(run: Path, text: str) -> None:
    stage, work = make(run, "folder", "one")
    run_stage(stage, work, quiet)
    stage.record.write_text(text)
    with pytest.raises(RunError, match=r"stage\.json"):
        state(stage)


# --- superseded ---


def test_stale_is_put_away_and_comes_back(run: Path, kind: str) -> None:
    (one, work_one), (two, work_two) = make(run, kind, "one"), make(run, kind, "two")
    said: list[str] = []
    run_stage(one, work_one, quiet)
    run_stage(two, work_two, said.append)
    shelf = run / "superseded" / f"{kind}-{one.fingerprint[:8]}"
    assert said == [f"{kind}: made from other inputs (config); kept in {shelf}"]
    assert content(two) == {"two"} and shelf.is_dir()
    for stage, version in [(one, "one"), (two, "two"), (one, "one")]:
        assert run_stage(stage, forbidden, quiet) == {"version": version}
        assert content(stage) == {version} and state(stage) == State(Status.DONE)
    assert [folder.name for folder in (run / "superseded").iterdir()] == [f"{kind}-{two.fingerprint[:8]}"]


def test_a_superseded_partial_stage_is_resumed(run: Path) -> None:
    (one, work_one), (two, work_two) = make(run, "folder", "one"), make(run, "folder", "two")

    def dies() -> None:
        (one.path / "half").write_text("kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(one, dies, quiet)
    run_stage(two, work_two, quiet)
    said: list[str] = []
    run_stage(one, work_one, said.append)
    assert said[1:] == ["folder: brought back from superseded", "folder: interrupted before, resumed"]
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
        assert state(stage) == State(Status.STALE, ("unrecorded",))
        run_stage(stage, work, quiet)
        assert content(stage) == {"one"}
        rundir.remove(stage.path)
        rundir.remove(stage.record)
    found = {file.read_text() for file in (run / "superseded").rglob("*") if file.is_file()}
    assert {"mine 1", "mine 2"} <= found


def test_what_an_atomic_write_left_behind_is_in_nobodys_way(run: Path) -> None:
    (one, work_one), (two, work_two) = make(run, "folder", "one"), make(run, "folder", "two")
    one.path.mkdir(parents=True)
    (one.path / ".stage.json.partial").write_text("{")
    assert state(one) == State(Status.ABSENT)
    run_stage(one, work_one, quiet)
    run_stage(two, work_two, quiet)
    rundir.remove(two.path)
    two.path.mkdir()
    (two.path / ".stage.json.partial").write_text("{")
    run_stage(one, forbidden, quiet)
    assert content(one) == {"one"}


def test_a_stray_companion_file_is_put_away_like_the_file_itself(run: Path) -> None:
    stage, work = make(run, "file", "one")
    stage.also[0].parent.mkdir()
    stage.also[0].write_text("mine")
    assert state(stage) == State(Status.STALE, ("unrecorded",))
    run_stage(stage, work, quiet)
    assert (run / "superseded" / "file-unrecorded" / "iteration-1" / "chosen.json").read_text() == "mine"


def test_what_is_in_place_is_not_replaced_from_the_shelf(run: Path, kind: str) -> None:
    stage, work = make(run, kind, "one")
    run_stage(stage, work, quiet)
    stage.record.write_text(stage.record.read_text().replace('"done"', '"running"'))
    shelf = run / "superseded" / f"{kind}-{stage.fingerprint[:8]}"
    for file in [file for file in (run / "iteration-1").rglob("*") if file.is_file()]:
        rundir.write_text(shelf / file.relative_to(run), "old")
    run_stage(stage, lambda: None, quiet)
    assert content(stage) == {"one"}


def test_without_a_lock_the_stages_own_folder_keeps_what_is_superseded(tmp_path: Path) -> None:
    (one, work_one), (two, work_two) = make(tmp_path, "folder", "one"), make(tmp_path, "folder", "two")
    run_stage(one, work_one, quiet)
    run_stage(two, work_two, quiet)
    assert (tmp_path / "iteration-1" / "superseded" / f"folder-{one.fingerprint[:8]}").is_dir()


def test_a_refused_second_lock_does_not_move_the_run_directory(run: Path) -> None:
    (one, work_one), (two, work_two) = make(run, "folder", "one"), make(run, "folder", "two")
    with pytest.raises(InputError), lock(run):
        raise AssertionError("locked twice")
    run_stage(one, work_one, quiet)
    run_stage(two, work_two, quiet)
    assert (run / "superseded").is_dir()


# --- kills ---


class Killed(BaseException):
    """The process is gone: nothing after it runs."""


def kill_after(operations: int, patch: pytest.MonkeyPatch) -> None:
    """Let that many changes of the file system pass; the next one, and all after it, do not happen."""
    left = operations

    def guarded(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            if left <= 0:
                raise Killed
            left -= 1
            return real(*args, **kwargs)

        return call

    for name in ("replace", "rename", "mkdir", "rmdir", "unlink"):
        patch.setattr(os, name, guarded(getattr(os, name)))
    patch.setattr(Path, "write_text", guarded(Path.write_text))


@pytest.mark.parametrize("back", [False, True], ids=["one-two", "one-two-one"])
def test_a_kill_between_any_two_file_operations_loses_nothing(tmp_path: Path, kind: str, back: bool) -> None:
    kills = 0
    for operations in range(100):
        run = tmp_path / str(operations)
        with lock(run):
            (one, work_one), (two, work_two) = make(run, kind, "one"), make(run, kind, "two")
            run_stage(one, work_one, quiet)
            if back:
                run_stage(two, work_two, quiet)
            wanted, other = (one, two) if back else (two, one)
            with pytest.MonkeyPatch.context() as patch:
                kill_after(operations, patch)
                try:
                    run_stage(wanted, forbidden if back else work_two, quiet)
                except Killed:
                    kills += 1
                else:
                    assert kills == operations and kills >= (3 if back else 7)
                    return
            run_stage(wanted, forbidden if back else work_two, quiet)
            assert content(wanted) == {"one" if back else "two"} and state(wanted) == State(Status.DONE)
            run_stage(other, forbidden, quiet)
            assert content(other) == {"two" if back else "one"} and state(other) == State(Status.DONE)
    raise AssertionError("the run never came to its end")
