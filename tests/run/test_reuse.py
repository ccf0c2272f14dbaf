"""Stages copied from another run: complete or absent after a kill, and the source is unchanged."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kills import Killed, kill_after

from noisystudent.console import Progress
from noisystudent.errors import RunError
from noisystudent.run import reuse
from noisystudent.run.fingerprint import fingerprint
from noisystudent.run.lock import lock
from noisystudent.run.stages import Stage, Status, run_stage, state


def make(run: Path, kind: str, version: str) -> Stage:
    inputs = {"config": fingerprint(version)}
    path = run / "iteration-1" / ("chosen.parquet" if kind == "file" else "student")
    also = (path.with_name("chosen.json"),) if kind == "file" else ()
    return Stage(kind, path, fingerprint(kind, inputs), inputs, also=also)


def parts(stage: Stage) -> list[Path]:
    if stage.path.suffix:
        return [stage.path, *stage.also]
    return [stage.path / "weights", stage.path / "checkpoint" / "step-1"]


def do(stage: Stage, version: str, then: Callable[[], None] = lambda: None) -> None:
    def work() -> None:
        for file in parts(stage):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(version)
            then()

    run_stage(stage, work, Progress())


def content(stage: Stage) -> set[str]:
    return {file.read_text() for file in parts(stage)}


def left_over(run: Path) -> list[Path]:
    return [path for path in run.rglob(".*") if path.name.endswith(".partial")]


@pytest.fixture
def lender(tmp_path: Path, kind: str) -> Path:
    with lock(tmp_path / "lender"):
        do(make(tmp_path / "lender", kind, "one"), "one")
    return tmp_path / "lender"


def test_a_stage_is_copied_as_the_same_files(tmp_path: Path, kind: str, lender: Path) -> None:
    source, ours = (make(run, kind, "one") for run in (lender, tmp_path / "run"))
    (lender / "iteration-1" / ".verdict.json.partial").touch()
    others = [tmp_path / "nothing", tmp_path / "run", lender]
    assert reuse.find(ours, tmp_path / "run", others) == source
    with lock(tmp_path / "run"):
        assert reuse.take_over(ours, tmp_path / "run", others) == lender
        assert state(ours).status is Status.DONE and content(ours) == {"one"}
        for here, there in zip([*parts(ours), ours.record], [*parts(source), source.record], strict=True):
            assert here.samefile(there)
        assert reuse.take_over(ours, tmp_path / "run", others) is None
        assert reuse.find(ours, tmp_path / "run", others) == ours
    assert left_over(tmp_path / "run") == []


def test_only_a_finished_stage_with_the_same_name_and_fingerprint_is_copied(
    tmp_path: Path, kind: str, lender: Path
) -> None:
    run = tmp_path / "run"
    ours = make(run, kind, "two")
    assert reuse.find(ours, run, [lender]) is None
    renamed = dataclasses.replace(make(run, kind, "one"), path=run / "iteration-2" / "student")
    assert reuse.find(renamed, run, [lender]) is None
    source = make(lender, kind, "one")
    source.record.write_text(source.record.read_text().replace('"done"', '"running"'))
    with lock(run):
        assert reuse.take_over(make(run, kind, "one"), run, [lender]) is None
        source.record.write_text("{")
        assert reuse.take_over(make(run, kind, "one"), run, [lender]) is None
    assert not (run / "iteration-1").exists()


def test_a_stage_within_a_stage_is_not_taken_with_it(tmp_path: Path) -> None:
    """It has its own record and may be running: two runs must never share a file that is being written."""
    lender, run = tmp_path / "lender", tmp_path / "run"
    with lock(lender):
        do(make(lender, "folder", "one"), "one")
    inner = lender / "iteration-1" / "student" / "finetune"
    inner.mkdir()
    (inner / "stage.json").write_text('{"status": "running"}')
    (inner.parent / ".predictions-test.npz.partial").touch()
    with lock(run):
        reuse.take_over(make(run, "folder", "one"), run, [lender])
    names = sorted(path.name for path in (run / "iteration-1" / "student").iterdir())
    assert names == ["checkpoint", "stage.json", "weights"]


def test_files_are_copied_if_there_are_no_hard_links(
    tmp_path: Path, kind: str, lender: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    ours = make(tmp_path / "run", kind, "one")
    with lock(tmp_path / "run"):
        reuse.take_over(ours, tmp_path / "run", [lender])
    shutil.rmtree(lender)
    assert state(ours).status is Status.DONE and content(ours) == {"one"}


def test_a_full_disk_is_one_line(
    tmp_path: Path, kind: str, lender: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copy2", full)
    ours = make(tmp_path / "run", kind, "one")
    with lock(tmp_path / "run"), pytest.raises(RunError, match=r"cannot write .*No space left"):
        reuse.take_over(ours, tmp_path / "run", [lender])
    assert state(ours).status is not Status.DONE


def test_nothing_is_copied_if_the_source_moves_its_files_away_meanwhile(
    tmp_path: Path, kind: str, lender: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "link", gone)
    ours = make(tmp_path / "run", kind, "one")
    with lock(tmp_path / "run"):
        assert reuse.take_over(ours, tmp_path / "run", [lender]) is None
        do(ours, "one")
    assert state(ours).status is Status.DONE


# --- kills ---


def begin(stage: Stage) -> None:
    """Leave an interrupted attempt at the same stage."""

    def stopped() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(stage, "half", stopped)


@pytest.mark.parametrize("before", [Status.ABSENT, Status.PARTIAL, Status.STALE])
def test_a_kill_between_any_two_file_operations_does_no_harm(
    tmp_path: Path, kind: str, lender: Path, before: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power is cut here
    for operations in range(100):
        run = tmp_path / str(operations)
        ours, old = make(run, kind, "one"), make(run, kind, "zero")
        with lock(run):
            if before is Status.PARTIAL:
                begin(ours)
            elif before is Status.STALE:
                do(old, "zero")
            assert state(ours).status is before
            with pytest.MonkeyPatch.context() as patch:
                kill_after(operations, patch)
                try:
                    reuse.take_over(ours, run, [lender])
                except Killed:
                    killed = True
                else:
                    killed = False
            whole = state(ours).status is Status.DONE
            assert not whole or content(ours) == {"one"}
            assert killed or whole
            reuse.take_over(ours, run, [lender])
            assert state(ours).status is Status.DONE and content(ours) == {"one"}
            assert left_over(run) == []
            if before is Status.STALE:
                do(
                    old,
                    "zero",
                    then=lambda: pytest.fail("the superseded stage is moved back, not made again"),
                )
                assert content(old) == {"zero"}
        assert content(make(lender, kind, "one")) == {"one"}
        if not killed:
            assert operations >= 4
            return
    raise AssertionError("take_over did not end within 100 operations")
