"""Damaged files of a finished stage are named, put aside and made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stages import content, forbidden, make
from tiny import Remembered

from noisystudent.console import Progress
from noisystudent.run.lock import lock
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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_no_flipped_bit_of_a_record_is_silent(number: int) -> None:
    with TemporaryDirectory() as folder, lock(Path(folder) / "run"):
        stage, work = make(Path(folder) / "run", "file", "one")
        run_stage(stage, work, Progress())
        text = bytearray(stage.record.read_bytes())
        bit = number % (8 * len(text))
        text[bit // 8] ^= 1 << bit % 8
        stage.record.write_bytes(text)
        progress = Remembered()
        result = run_stage(stage, work, progress)
        # A changed space or a changed case outside of strings is the same JSON.
        assert result == {"version": "one"} and content(stage) == {"one"}
        if progress.lines != ["file: done before, skipped"]:
            assert "chosen.stage.json is damaged" in progress.lines[0]


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
