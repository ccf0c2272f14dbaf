"""Weights & Biases, offline: one run for each stage, in the folder `wandb` of the run directory."""

from __future__ import annotations

import os

from noisystudent.run import files
from noisystudent.trackers.measured import PROJECT, StageMetrics


def log(stage: StageMetrics) -> None:
    """Write the numbers of a stage and the configuration of its run, unless they are there.

    Nothing is sent: `wandb sync RUN/wandb/*/wandb/offline-run-*` uploads them. The project is WANDB_PROJECT,
    or `noisystudent`. The stages of a run are a group.
    """
    folder = stage.run.wandb / f"{stage.name}-{stage.key}"
    if folder.is_dir():
        return
    import wandb

    with files.atomic(folder) as partial:  # a killed process leaves no half of a stage
        partial.mkdir()
        with wandb.init(
            mode="offline",
            dir=partial,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=stage.key,
            name=stage.title,
            group=stage.run.path.absolute().name,
            config=stage.run.read_config(),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        ) as run:
            for step, values in stage.points():
                run.log(values, step=step)
