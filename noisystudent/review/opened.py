"""A finished run, opened to be read: its images, its stages and its last model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from noisystudent import recipes
from noisystudent.console import Progress
from noisystudent.data.prepare import open_dataset
from noisystudent.data.sources import Sources, listing_fingerprint, open_sources
from noisystudent.errors import InputError
from noisystudent.inference.existing import fingerprints
from noisystudent.run.build import build_graph
from noisystudent.run.graph import Model
from noisystudent.run.rundir import RunDir
from noisystudent.run.stages import Status, state
from noisystudent.runtime import resolve_device
from noisystudent.self_training.context import Context


def open_run(run: Path, sources: Sources | None, device: str, progress: Progress) -> tuple[Context, Model]:
    """Open a run without changing anything in it.

    Args:
        run: run directory.
        sources: images of the run; None: those that its configuration names.
        device: auto, or a torch device.
        progress: receives the progress of work on the images.

    Returns:
        The run, and its last student, or its teacher without a finished student.

    Raises:
        InputError: `run` is not a run directory, its images or labels have changed, or no model is finished.
    """
    folder = RunDir(run)
    if not folder.config.is_file():
        raise InputError(f"{run} is not a run directory (no config.yaml); give a folder that `run` wrote")
    config = replace(recipes.load(str(folder.config)), device=device)
    sources = open_sources(config.data) if sources is None else sources
    graph = build_graph(config, listing_fingerprint(sources), folder, fingerprints(config))
    if state(graph.data).status is not Status.DONE:
        if not config.data.labeled:
            raise InputError(
                f"{run} is a run on images in memory, which are not scanned, or others than those given;"
                " after NoisyStudent.fit call noisystudent.review.review with the same arrays as `sources`"
                " (docs/review.md)"
            )
        raise InputError(
            f"{run}: its images are not scanned, or images or labels have changed since; run `noisystudent"
            f" run --out {run}` first"
        )
    finished = [model for model in graph.models() if model.role in ("teacher", "student")]
    finished = [model for model in finished if state(model.last).status is Status.DONE]
    if not finished:
        raise InputError(f"{run} has no finished model; resume the run first")
    context = Context(
        config=config,
        run=folder,
        graph=graph,
        dataset=open_dataset(folder.data, config.data, sources),
        device=resolve_device(config.device),
        progress=progress,
    )
    return context, finished[-1]
