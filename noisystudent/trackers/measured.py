"""The numbers of the finished stages of a run, from their files metrics.jsonl."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisystudent.run.record import read_record, records
from noisystudent.run.rundir import ModelDir, RunDir
from noisystudent.train import journal

PROJECT = "noisystudent"
"""Name of the project (W&B) or experiment (MLflow) where the user names none."""


@dataclass(frozen=True, slots=True)
class StageMetrics:
    """What a finished stage has measured.

    Attributes:
        run: the run.
        name: name of the stage, e.g. student-1 or judgement.
        fingerprint: that of its inputs.
        lines: lines of metrics.jsonl.
    """

    run: RunDir
    name: str
    fingerprint: str
    lines: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """Name that people see: the folder of the run and the stage."""
        return f"{self.run.path.absolute().name}/{self.name}"

    @property
    def key(self) -> str:
        """16 hexadecimal digits for this stage, with these inputs, of the run in this place."""
        return hashlib.sha256(f"{self.run.path.resolve()}\n{self.fingerprint}".encode()).hexdigest()[:16]

    def points(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield (step, {name: value}) of each line.

        A training counts its steps. The judgement counts the iterations, and its names are like
        student/test/top1.
        """
        for line in self.lines:
            if "step" in line:
                yield line["step"], {name: line[name] for name in line if name != "step"}
            else:
                index = ("iteration", "model", "set")
                model = f"{line['model']}/{line['set']}"
                yield line["iteration"], {f"{model}/{name}": line[name] for name in line if name not in index}


def measured(run: RunDir) -> Iterator[StageMetrics]:
    """Yield the numbers of all finished stages that have some, in the order of the stages.

    Raises:
        RunError: a file of the run is damaged.
    """
    for path in records(run):
        record = read_record(path) or {}
        # Only then its lines are read: a training that was killed may have written half of one.
        if record.get("status") == "done" and (lines := read_lines(path)):
            yield StageMetrics(run, record["name"], record["fingerprint"], lines)


def read_lines(record: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl beside the record of a stage; none if there is no such file.

    Raises:
        RunError: the file is damaged.
    """
    path = ModelDir(record.parent).metrics
    return journal.read(path) if path.is_file() else []
