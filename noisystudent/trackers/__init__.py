"""Other programs that show the numbers of a run: MLflow, W&B, and readers of JSON lines.

The files metrics.jsonl are the truth: a tracker is given those of every finished stage that it lacks. So
nothing is logged twice, however often a run was stopped, and a finished run can be logged later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from noisystudent.console import Progress, Relay
from noisystudent.errors import InputError, RunError, did_you_mean, first_line
from noisystudent.run.rundir import RunDir
from noisystudent.trackers import mlflow, wandb
from noisystudent.trackers.measured import StageMetrics, measured

__all__ = ["TRACKERS", "Tracked", "check_trackers", "track"]

TRACKERS: dict[str, Callable[[StageMetrics], None]] = {"mlflow": mlflow.log, "wandb": wandb.log}
"""Name of a tracker, its package and its extra -> function that logs a stage unless the tracker has it."""


def check_trackers(names: Sequence[str]) -> None:
    """Check the names of trackers before any work.

    Raises:
        InputError: a tracker is unknown or not installed.
    """
    for name in names:
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS)
            raise InputError(f"--tracker is {name}; it must be one of {', '.join(TRACKERS)}{hint}")
        if find_spec(name) is None:
            raise InputError(f"--tracker is {name}, which needs pip install 'noisystudent[{name}]'")


def track(run: str | Path, names: Sequence[str]) -> None:
    """Log the numbers of all finished stages of a run that the trackers do not have yet.

    Args:
        run: run directory.
        names: names of trackers.

    Raises:
        InputError: a tracker is unknown or not installed.
        RunError: a tracker cannot be written to, or a file of the run is damaged.
    """
    check_trackers(names)
    for name in names:
        for stage in measured(RunDir(Path(run))):
            try:
                TRACKERS[name](stage)
            except Exception as error:  # of the network, of a server, of a disk: each tracker has its own
                raise RunError(f"{name} does not take {stage.name} ({first_line(error)})") from error


class Tracked(Relay):
    """Passes everything on to `progress`, and logs the numbers of each finished stage.

    Args:
        progress: receives everything.
        run: run directory.
        names: names of trackers.

    Raises:
        InputError: a tracker is unknown or not installed.
    """

    def __init__(self, progress: Progress, run: Path, names: Sequence[str]) -> None:
        check_trackers(names)
        super().__init__(progress)
        self._run, self._names = run, names

    def finish(self, record: Path) -> None:
        """Log the numbers of the stage. A tracker that does not answer stops no run: it gets them later."""
        super().finish(record)
        try:
            track(self._run, self._names)
        except RunError as error:
            self.say(f"warning: {error}; the numbers are sent again after the next stage")
