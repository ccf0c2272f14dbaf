"""The examples run as they are, and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PRINTED = {
    "own_folder.py": ["right on ", "report.html", "'0100.png'"],
    "arrays.py": ["logistic regression, self-trained: ", "noisy student: ", "100 labels given"],
    "two_teachers.py": ["support vector machine alone: ", "teachers: ", "student-1: "],
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == PRINTED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_an_example_runs(name: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in PRINTED[name]), done.stdout
