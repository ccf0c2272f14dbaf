"""Run a whole ablation: make all its runs and write the table again whenever a run ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from noisystudent.ablation.matrix import Matrix
from noisystudent.ablation.output import LOG, write
from noisystudent.ablation.runs import Library, Run, attempt
from noisystudent.ablation.table import summary
from noisystudent.ablation.workers import share
from noisystudent.config import DataConfig
from noisystudent.console import Logged, Progress
from noisystudent.data.sources import listing_fingerprint, open_sources
from noisystudent.errors import InputError
from noisystudent.inference.existing import fingerprints
from noisystudent.run.build import build_graph
from noisystudent.run.fingerprint import ListingFingerprint
from noisystudent.run.lock import lock
from noisystudent.run.rundir import RunDir

OnEnd = Callable[[Run, str | None], None]
"""Called with each run that ended, and why it failed; None: it did not fail."""


def study(
    matrix: Matrix,
    out: Path,
    *,
    processes: int,
    command: str,
    worker: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make all runs of `matrix` in `out`. A second call makes only what is missing, failed or changed.

    Args:
        matrix: cells and seeds.
        out: output folder for `<cell>/seed-<n>/`, ablation.json, ablation.csv and ablation.html. The runs on
            all labels are in the folder `ceilings` beside it, where other ablations find them.
        processes: number of runs at a time.
        command: command line of this call, for the page.
        worker: share the runs with other calls that have this, see `workers.share`.
        progress: receives the lines and bars of all runs.

    Returns:
        Content of ablation.json. `failed` of a cell names the seeds that failed, and why.

    Raises:
        InputError: images do not exist, or `out` or `ceilings` is in use or holds other files.
        Stopped: a signal came. Finished stages stay on disk.
    """
    with lock(out, "study", shared=worker):
        progress = Logged(progress or Progress(), out / LOG)
        progress.say(f"ablation: {out}")
        if matrix.oracle is not None:
            with lock(_ceilings(out), "ceilings", shared=worker):  # refuses a folder of the user
                pass
        runs, failed = plan(matrix, out), dict[str, str]()
        _announce(matrix, runs, out, progress)

        write_table = partial(_write_table, matrix, runs, command, out)

        # Also called for each run of another process, so the table is always up to date.
        def on_end(run: Run, reason: str | None) -> None:
            failed.update({} if reason is None else {run.name: reason})
            write_table(failed)

        # The table also has the cells that are not run now: an earlier call may have finished them.
        chosen = [run for run in runs if run.name in matrix.chosen()]
        if worker:
            return summary(matrix, runs, share(chosen, out, write_table, progress), command)
        run_all(chosen, out, on_end, processes=processes, progress=progress)
        return write_table(failed)


def plan(matrix: Matrix, out: Path) -> list[Run]:
    """Every run of the matrix with its stages, in the order in which the runs should start.

    A run on all labels has the fingerprint of its training as the name of its folder: the same recipe, images
    and seed have the same ceiling, which is trained once on a machine.

    Raises:
        InputError: images do not exist. The message names the run.
    """
    # Most runs have the same images, so each set is listed only once.
    listings: dict[DataConfig, ListingFingerprint] = {}
    runs: list[Run] = []
    for name, folder, seed in matrix.runs():
        config, run = matrix.config(folder, seed), RunDir(out / name)
        if config.data not in listings:
            try:
                listings[config.data] = listing_fingerprint(open_sources(config.data))
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        graph = build_graph(config, listings[config.data], run, fingerprints(config))
        if matrix.oracle is not None and folder == matrix.oracle.folder:
            run = RunDir(_ceilings(out) / graph.teachers[0].last.fingerprint[:16])
            graph = build_graph(config, listings[config.data], run, fingerprints(config))
        runs.append(Run(name=name, config=config, folder=run, graph=graph))
    return runs


def run_all(runs: list[Run], out: Path, on_end: OnEnd, *, processes: int, progress: Progress) -> None:
    """Make every run that is not done. If a run fails, the others are still made.

    Args:
        runs: runs from `plan`.
        out: output folder of the matrix, which the caller has locked.
        on_end: called after each run that was not done before.
        processes: number of runs at a time. 1: they are made in this process.
        progress: receives the lines and bars of all runs.

    Raises:
        Stopped: a signal came. Finished stages stay on disk.
    """
    left = [run for run in runs if not run.done]
    if processes == 1:
        for run in left:
            on_end(run, attempt(run.name, run.config, run.folder, out, progress))
    else:
        from noisystudent.ablation.processes import side_by_side

        side_by_side(left, Library(out), on_end, processes=processes, progress=progress)


def _ceilings(out: Path) -> Path:
    """Folder of the runs on all labels, which the ablations beside each other share."""
    return Path(os.path.abspath(out)).parent / "ceilings"


def _write_table(
    matrix: Matrix, runs: list[Run], command: str, out: Path, failed: dict[str, str]
) -> dict[str, Any]:
    content = summary(matrix, runs, failed, command)
    write(content, out)
    return content


def _announce(matrix: Matrix, runs: list[Run], out: Path, progress: Progress) -> None:
    """Print how many runs and stages there are, and where runs on all labels are."""
    stages = [(stage.name, stage.fingerprint) for run in runs for stage in run.graph.stages()]
    progress.say(
        f"{matrix.name}: {len(runs)} runs, seeds {', '.join(map(str, matrix.seeds))};"
        f" {len(stages)} stages, {len(set(stages))} of them different; each of these is made only once"
    )
    for run in runs:
        if run.folder.path.parent == _ceilings(out):
            progress.say(f"{run.name}: in {run.folder.path}{', done before' if run.done else ''}")
