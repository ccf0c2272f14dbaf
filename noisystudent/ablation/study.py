"""A whole ablation: its runs made, its table rewritten whenever one of them ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noisystudent.ablation.matrix import Matrix
from noisystudent.ablation.output import write
from noisystudent.ablation.running import Run, plan, run_all
from noisystudent.ablation.table import summary
from noisystudent.rundir import lock
from noisystudent.runtime import StopFlag, Voice


def study(
    matrix: Matrix, out: Path, *, processes: int, command: str, stop: StopFlag, voice: Voice
) -> dict[str, Any]:
    """Make what is not yet done of `matrix` in `out`; again: only what is missing, failed or changed.

    Args:
        matrix: its cells.
        out: receives `<cell>/seed-<n>/`, ablation.json, ablation.csv and ablation.html.
        processes: runs at a time.
        command: how this was called, for the page.
        stop: of this process.
        voice: told what happens.

    Returns:
        The content of ablation.json; `failed` of its cells says what could not be made, and why.

    Raises:
        InputError: images that are not there, or `out` is in use.
        Stopped: a signal came; what is done stays.
    """
    with lock(out, "study"):
        runs = plan(matrix, out)
        voice.say(_announcement(matrix, runs))
        failed: dict[str, str] = {}

        def ended(run: Run, reason: str | None) -> None:
            if reason is not None:
                failed[run.name] = reason
            write(summary(matrix, runs, failed, command), out)

        chosen = matrix.chosen()
        run_all(
            [run for run in runs if run.name in chosen],
            out,
            ended,
            processes=processes,
            stop=stop,
            voice=voice,
        )
        content = summary(matrix, runs, failed, command)
        write(content, out)
    return content


def _announcement(matrix: Matrix, runs: list[Run]) -> str:
    stages = [(stage.name, stage.fingerprint) for run in runs for stage in run.graph.stages()]
    return (
        f"{matrix.name}: {len(runs)} runs, seeds {', '.join(map(str, matrix.seeds))};"
        f" {len(set(stages))} different stages, each made once, for {len(stages)} places"
    )
