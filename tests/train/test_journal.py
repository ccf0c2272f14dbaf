from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from noisystudent.errors import RunError
from noisystudent.train.journal import Journal


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_opening_keeps_the_lines_up_to_the_step_and_drops_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, 0)
    for step in (5, 10, 10, 15):
        journal.append({"step": step, "loss": 0.5})
    journal.sync()
    Journal(path, 10).append({"step": 12})
    assert steps(path) == [5, 10, 10, 12]
    Journal(path, 0)
    assert path.read_text() == ""


@pytest.mark.parametrize(
    "torn", ['{"step": 10, "lo', '{"step": 10}', "\x00\x00\x00\n", "[1]\n", '{"loss": 1}\n']
)
def test_a_torn_line_and_what_follows_it_are_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n' + torn)
    Journal(path, 100)
    assert path.read_text() == '{"step": 5}\n'


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write .*metrics.jsonl: File too large$"):
            journal.append({"step": 5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
