"""The plan before a run: the configuration that fits the budget, what it takes, and its memory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from noisystudent.config import Config
from noisystudent.config.run import learners
from noisystudent.console import Progress
from noisystudent.data.sources import Sources, listing_fingerprint
from noisystudent.inference.existing import fingerprints
from noisystudent.recipes import load
from noisystudent.run.build import build_graph
from noisystudent.run.estimate import RunPlan, lines, require_memory
from noisystudent.run.lock import MARKER
from noisystudent.run.rundir import RunDir
from noisystudent.run.stages import Status, state
from noisystudent.self_training.budget import describe, ladder, within
from noisystudent.self_training.checks import check_config
from noisystudent.self_training.estimate import planner

_LONG = 60.0  # seconds of trainings from which on a run is measured before it begins


def plan(
    config: Config, sources: Sources, out: Path, *, budget: float | None = None, progress: Progress
) -> tuple[Config, RunPlan]:
    """Measure what a run will take; nothing is written into `out`.

    Args:
        config: configuration of the run.
        sources: its images.
        out: run directory; stages that are done there are left out.
        budget: seconds in which the run is to end, or None. A shorter or smaller configuration is chosen if
            the run takes longer, see `ladder`; but a run that was begun with one of them keeps it.
        progress: a signal stops the measurements, and a line is printed if a run keeps its configuration.

    Returns:
        The configuration that was chosen, and its plan.

    Raises:
        InputError: the configuration or the images cannot be used, no configuration fits the budget, or the
            run does not fit into the memory.
        Stopped: a signal was received.
    """
    check_config(config, pool=sources.unlabeled is not None)
    chosen = None if budget is None else _begun(config, out)
    if chosen is not None:
        progress.say(f"--budget: {out} was begun with settings for a budget, and keeps them")
    find = _states(sources, out)
    with planner(sources, out, progress, lambda one: _done(find(one))) as stages:
        if budget is not None and chosen is None:
            return within(config, budget, lambda one: stages(one).plan())
        planned = stages(chosen or config).plan()
    require_memory(planned)
    return chosen or config, planned


def plan_long(
    config: Config, sources: Sources, out: Path, *, budget: float | None, progress: Progress
) -> Config:
    """Print what a run will take before it begins, and return its configuration, which the budget may change.

    Without a budget nothing is measured if the run goes on within a stage, or is done. Nothing is printed if
    its trainings take less than a minute at the pace of the first one. The errors are those of `plan`.
    """
    if budget is None:
        check_config(config, pool=sources.unlabeled is not None)
        find = _states(sources, out)
        left = [status for status in find(config).values() if status is not Status.DONE]
        if not left or left[0] is Status.PARTIAL:
            return config
        with planner(sources, out, progress, lambda one: _done(find(one))) as stages:
            known = stages(config)
            if known.rough() < _LONG:
                return config
            planned = known.plan()
        require_memory(planned)
    else:
        config, planned = plan(config, sources, out, budget=budget, progress=progress)
    for line in [*lines(planned.stages), *(describe(config) if budget is not None else ())]:
        progress.say(line)
    return config


def _states(sources: Sources, out: Path) -> Callable[[Config], dict[str, Status]]:
    """Return a function from a configuration to the status of each stage of its run in `out`."""
    listing, run = listing_fingerprint(sources), RunDir(out)

    def states(config: Config) -> dict[str, Status]:
        graph = build_graph(config, listing, run, fingerprints(config))
        return {stage.name: state(stage).status for stage in graph.stages()}

    return states


def _done(states: dict[str, Status]) -> Collection[str]:
    return {name for name, status in states.items() if status is Status.DONE}


def _begun(config: Config, out: Path) -> Config | None:
    """Return the configuration of the ladder with which the run in `out` was begun; None if there is none."""
    run = RunDir(out)
    if not (run.config.is_file() and (out / MARKER).is_file()):
        return None
    before = load(str(run.config))
    return next((rung for rung in ladder(config) if _chosen(rung) == _chosen(before)), None)


def _chosen(config: Config) -> tuple[object, ...]:
    """What the ladder changes."""
    return config.data.resolution, learners(config)
