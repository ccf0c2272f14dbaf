"""`label --worker` and `label --engine ray`: processes that help a run to label its pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from noisystudent.cli import screen
from noisystudent.cli.fields import NO_LABELS, Field, Settings, configure, recorded
from noisystudent.errors import InputError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Worker:
    """Flags of `label` for the pool of a run."""

    worker: Annotated[
        bool,
        Parameter(negative=(), help="Label parts of the pool of the run directory MODEL, as `run` does."),
    ] = False
    engine: Annotated[
        Literal["ray"] | None,
        Parameter(
            help="Start workers as tasks of a Ray cluster, that of RAY_ADDRESS or a new one on this machine."
            " A task that dies is started again. Needs noisystudent[ray]."
        ),
    ] = None
    tasks: Annotated[
        int | None,
        Parameter(
            help="With --engine: number of tasks. Default: one for each GPU; without GPUs, for each machine.",
            validator=validators.Number(gte=1),
        ),
    ] = None


NO_WORKER = Worker()


def label_as_worker(run: Path, worker: Worker, device: str, others: Sequence[str | Field]) -> None:
    """Help a run to label its pool.

    Args:
        run: run directory.
        worker: flags.
        device: that of this worker; auto: that of the run.
        others: flags and fields that are given too, which a worker does not take.

    Raises:
        InputError: the call is wrong.
        Stopped: a signal came, or the run has nothing to label yet.
    """
    from noisystudent.self_training.worker import label_as_worker

    if others:
        name = others[0] if isinstance(others[0], str) else f"--{others[0][0]}"
        raise InputError(f"{name} is given with --worker, which labels as the run {run} does; leave it out")
    settings = Settings(out=run)
    if recorded(settings) is None:
        raise InputError(f"{run} is not a run directory, which --worker needs; give the --out of `run`")
    config, _ = configure(None, settings, NO_LABELS, [])
    if not config.data.labeled:
        raise InputError(
            f"{run} is a run on images in memory, which a worker cannot read; it needs no worker"
        )
    if device != "auto":
        config = replace(config, device=device)
    with screen.progress() as progress:
        if worker.engine is None:
            left = label_as_worker(config, run, progress=progress)
        else:
            from noisystudent.self_training.ray_tasks import label_with_ray

            left = label_with_ray(config, run, worker.tasks, progress=progress)
        progress.say(f"{run}: {'every part is labelled' if left else 'nothing is left to label'}")
