"""Several calls, on machines that share a disk, make the runs of one matrix together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from noisystudent.ablation.runs import Library, Run, attempt
from noisystudent.console import Progress
from noisystudent.run.files import read_json, write_json
from noisystudent.run.leases import Leases
from noisystudent.run.lock import is_locked

_LEASES = ".leases.partial"  # folder in that of the matrix
_TABLE = "table"  # unit of work: the writing of the table
_POLL = 2.0  # seconds between two looks at the runs of other workers


def share(
    runs: Sequence[Run], out: Path, write: Callable[[dict[str, str]], object], progress: Progress
) -> dict[str, str]:
    """Make the runs that no other worker makes, one at a time, until every run is done or has failed.

    The units of work are stages, so that each is made once: a worker claims all stages that a run still
    needs, or looks for another run. If it dies, another worker goes on with its run. A run that fails is not
    tried again by the workers that were started before.

    Args:
        runs: runs to make, in the order in which they should start.
        out: folder of the matrix.
        write: writes the table, given {run: why it failed}. Two workers never call it at the same time.
        progress: receives the lines and bars.

    Returns:
        {run: why it failed}.

    Raises:
        Stopped: a signal came. Finished stages stay on disk.
    """
    library, left = Library(out), list(runs)
    with Leases(out / _LEASES) as leases:
        with leases.hold(_TABLE, progress):
            since = leases.now()
        while left := _left(out, left, since):
            claimed = next(((run, units) for run in left if (units := _claim(run, library, leases))), None)
            if claimed is None:
                progress.check()
                time.sleep(_POLL)
                continue
            run, units = claimed
            reason = attempt(run.name, run.config, run.folder, out, progress)
            if reason is not None:
                write_json(_note(out, run), {"reason": reason})
            for unit in units:
                (leases.end if reason is None else leases.release)(unit)
            with leases.hold(_TABLE, progress):
                write(_failed(out, runs, since))
        failed = _failed(out, runs, since)
        with leases.hold(_TABLE, progress):
            write(failed)
    return failed


def _left(out: Path, runs: Sequence[Run], since: float) -> list[Run]:
    """The runs that are neither done nor failed."""
    failed = _failed(out, runs, since)
    return [run for run in runs if run.name not in failed and not run.done]


def _claim(run: Run, library: Library, leases: Leases) -> list[str]:
    """Claim a run and all stages that it needs; returns their units, none if another worker has one of them.

    All workers claim in the same order, so that of those that need the same stages one gets them all.
    """
    units = [*sorted(f"{name}-{digest[:16]}" for name, digest in library.missing(run)), _unit(run)]
    # Looked at first: a worker that waits would leave a new lease of each free unit at every look.
    if is_locked(run.folder.path) or not all(leases.is_free(unit) for unit in units):
        return []
    claimed: list[str] = []
    for unit in units:
        if not leases.claim(unit):
            break
        claimed.append(unit)
    else:
        if not is_locked(run.folder.path):  # by a call of `run`
            return claimed
    for unit in claimed:
        leases.release(unit)
    return []


def _unit(run: Run) -> str:
    return run.name.replace("/", ".")


def _note(out: Path, run: Run) -> Path:
    """The file that says why a run has failed."""
    return out / _LEASES / f"{_unit(run)}.failed"


def _failed(out: Path, runs: Sequence[Run], since: float) -> dict[str, str]:
    """{run: why it failed} of the runs that have failed since a time of the file system, in any worker.

    A worker that was started later may have made such a run.
    """
    notes = [(run, _note(out, run)) for run in runs]
    return {
        run.name: str(read_json(note)["reason"])
        for run, note in notes
        if note.is_file() and note.stat().st_mtime >= since and not run.done
    }
