"""Damaged files of a finished stage are named, put aside and made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_stages import content, forbidden, make
from tiny import Remembered

from noisystudent.console import Progress
from noisystudent.errors import RunError
from noisystudent.run.record import read_record
from noisystudent.run.stages import State, Status, run_stage, state


def emptied(data: bytes) -> bytes:
    return b""


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def removed(data: bytes) -> None:
    return None


DAMAGES = [emptied, halved, flipped, removed]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_put_aside_and_made_again(
    run: Path, kind: str, damage: Callable[[bytes], bytes | None]
) -> None:
    stage, work = make(run, kind, "one")
    run_stage(stage, work, Progress())
    file = stage.path if kind == "file" else stage.path / "a"
    text = damage(file.read_bytes())
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text)
    progress = Remembered()
    run_stage(stage, work, progress)
    (line,) = progress.lines
    problem = "is missing" if text is None else "is damaged"
    assert line.startswith(f"{kind}: {file.relative_to(run)} {problem}; ") and line.endswith(
        "it is made again"
    )
    assert content(stage) == {"one"} and state(stage, contents=True) == State(Status.DONE)
    if text is not None:
        kept = run / "superseded" / "damaged" / file.relative_to(run)
        assert kept.read_bytes() == text and str(kept) in line


def test_each_damaged_version_is_kept(run: Path) -> None:
    stage, work = make(run, "file", "one")
    for version in ("bad", "worse"):
        run_stage(stage, work, Progress())
        stage.path.write_text(version)
    run_stage(stage, work, Progress())
    kept = {file.read_text() for file in (run / "superseded").rglob("*") if file.is_file()}
    assert kept == {"bad", "worse"}


def test_files_that_came_later_belong_to_others(run: Path) -> None:
    stage, work = make(run, "folder", "one")
    run_stage(stage, work, Progress())
    (stage.path / "of-another-stage").write_text("1")
    run_stage(stage, forbidden, Progress())
    (stage.path / "of-another-stage").write_text("2")
    run_stage(stage, forbidden, Progress())


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_no_flipped_bit_of_a_record_is_silent(run: Path, step: int) -> None:
    stage, work = make(run, "file", "one")
    run_stage(stage, work, Progress())
    data, record = stage.record.read_bytes(), read_record(stage.record)
    named = 0
    for bit in range(0, 8 * len(data), step):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        stage.record.write_bytes(flipped)
        try:
            # The last digit of a duration may be another one of the same number.
            assert read_record(stage.record) == record
        except RunError as error:
            assert str(stage.record) in str(error)
            named += 1
    assert named > 0.99 * 8 * len(data) / step


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "../../out", "fingerprint": "a", "status": "done", "inputs": {}}',
        '{"name": "folder", "fingerprint": "/../a", "status": "done", "inputs": {}}',
        "[]",
        "{}",
        '{"fingerprint": "a", "status": "done", "inputs": []}',
        "{",
        "\xff",
    ],
)
def test_a_stage_with_a_damaged_record_is_made_again(run: Path, text: str) -> None:
    stage, work = make(run, "folder", "one")
    run_stage(stage, work, Progress())
    stage.record.write_text(text, encoding="latin-1")
    assert state(stage) == State(Status.STALE, problems=("iteration-1/labels/stage.json is damaged",))
    progress = Remembered()
    run_stage(stage, work, progress)
    superseded = run / "superseded" / "folder-unrecorded"
    assert progress.lines == [f"folder: iteration-1/labels/stage.json is damaged; moved to {superseded}"]
    assert (superseded / "iteration-1" / "labels" / "a").is_file()
    assert state(stage) == State(Status.DONE)
