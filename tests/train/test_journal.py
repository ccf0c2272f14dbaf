from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from noisystudent.errors import RunError
from noisystudent.train.journal import Board, Journal, read


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_resumed_journal_has_the_lines_of_the_snapshot_and_no_others(tmp_path: Path) -> None:
    path, saved = tmp_path / "metrics.jsonl", tmp_path / "saved.jsonl"
    journal = Journal(path, None)
    for step in (5, 10, 10):
        journal.append({"step": step, "loss": 0.5})
    saved.write_bytes(path.read_bytes())
    for damage in ('{"step": 15}\n', '{"step": 15, "lo', "\x00\x00\x00\n"):  # written after the snapshot
        path.write_text(path.read_text() + damage)
        Journal(path, saved).append({"step": 12, "loss": 0.25})
        assert steps(path) == [5, 10, 10, 12]
        assert [line["step"] for line in read(path)] == [5, 10, 10, 12]
    Journal(path, None)
    assert path.read_text() == ""


@pytest.mark.parametrize("text", [b'{"step": 10, "lo', b"\x00\n", b"\xff\n"])
def test_a_damaged_file_is_one_line(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text)
    with pytest.raises(RunError, match=r"metrics\.jsonl does not hold measurements"):
        read(path)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write .*metrics.jsonl: File too large$"):
            journal.append({"step": 5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_points_are_those_of_the_last_file_and_a_full_disk_is_one_line(tmp_path: Path) -> None:
    for start in (1, 3):
        board = Board(tmp_path / "curves")
        for step in range(start, 6):
            board.draw({"step": step, "loss": step + start / 10})
    events = EventAccumulator(str(tmp_path / "curves")).Reload().Scalars("loss")
    assert [(event.step, round(event.value, 3)) for event in events] == [(3, 3.3), (4, 4.3), (5, 5.3)]
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"^cannot write [^\n]*file/curves: Not a directory$"):
        Board(tmp_path / "file" / "curves")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(RunError, match=r"^cannot write [^\n]*tfevents[^\n]*: File too large$"):
            for step in range(9):
                board = Board(tmp_path / "other")
                board.draw({"step": step, "loss": 1.0, "accuracy": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
