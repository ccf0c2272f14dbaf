"""The plan before a run: the configuration that fits the budget, what it takes, and its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from noisystudent.config import Config
from noisystudent.config.run import learners
from noisystudent.console import Progress
from noisystudent.data.sample import Sample, take_sample
from noisystudent.data.sources import Sources, listing_fingerprint
from noisystudent.inference.existing import fingerprints
from noisystudent.recipes import load
from noisystudent.run.backbones import embedded
from noisystudent.run.build import build_graph
from noisystudent.run.estimate import RunPlan, lines, readable_time, require_memory, whole
from noisystudent.run.files import temporary_folder
from noisystudent.run.fingerprint import ListingFingerprint, fingerprint
from noisystudent.run.lock import MARKER
from noisystudent.run.rundir import RunDir
from noisystudent.run.stages import Status, state
from noisystudent.runtime import resolve_device
from noisystudent.self_training.budget import describe, ladder, within
from noisystudent.self_training.checks import check_config
from noisystudent.self_training.context import Context
from noisystudent.self_training.estimate import Stages
from noisystudent.self_training.rates import Measurements, Rates

# Images of each set in the sample. A backbone computes several views of each.
_IMAGES, _IMAGES_FOR_FEATURES = 256, 32
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
    kept = f"--budget: {out} keeps the settings with which it was begun"
    find = _states(sources, out)
    if budget is None or chosen is not None:
        config = chosen or config
        if not _left(find(config)):
            if chosen is not None:
                progress.say(kept)
            return config, RunPlan(stages=())
    with _planner(sources, out, progress, find) as stages:
        if budget is not None and chosen is None:
            return within(config, budget, lambda one: stages(one).plan())
        planned = stages(config).plan()
    require_memory(planned)
    if budget is not None:
        seconds = whole(planned.stages).seconds
        over = f", more than {readable_time(budget)}; give another --out for a smaller run"
        progress.say(
            f"{kept}; the rest takes about {readable_time(seconds)}{over if seconds > budget else ''}"
        )
    return config, planned


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
        left = _left(find(config))
        if not left or left[0] is Status.PARTIAL:
            return config
        with _planner(sources, out, progress, find) as stages:
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


def _left(states: dict[str, Status]) -> list[Status]:
    """The status of each stage that is not done."""
    return [status for status in states.values() if status is not Status.DONE]


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


@contextmanager
def _planner(
    sources: Sources, out: Path, progress: Progress, states: Callable[[Config], dict[str, Status]]
) -> Iterator[Callable[[Config], Stages]]:
    """Yield a function that measures the run of a configuration, see `Stages`.

    It lists the images, and scans some of them into a temporary folder, which is removed in the end. Each
    different training takes a few steps there, with the code of the run, and predictions take a few batches.
    Configurations that differ in lengths alone share these measurements.

    Args:
        sources: images of the run.
        out: run directory; nothing is written there.
        progress: a signal stops the measurements.
        states: configuration -> status of each stage of `out`; those that are done are left out.
    """
    quiet, measurements = Progress(progress.stop), Measurements()
    samples: dict[str, tuple[Sample, Path]] = {}

    with temporary_folder() as folder:

        def stages(config: Config) -> Stages:
            size = _IMAGES_FOR_FEATURES if embedded(config) else _IMAGES
            key = fingerprint(config.data, size)
            if key not in samples:
                place = folder / str(len(samples))
                place.mkdir()
                taken = take_sample(config.data, sources, place, out, size=size, progress=quiet)
                samples[key] = taken, place
            sample, place = samples[key]
            run = RunDir(place / "run")
            device = resolve_device(config.device, deterministic=config.deterministic)
            context = Context(
                config=config,
                run=run,
                graph=build_graph(config, ListingFingerprint("", ""), run, fingerprints(config)),
                dataset=sample.whole.to_device(device),
                device=device,
                progress=quiet,
            )
            rates = Rates(context=context, few=sample.few, known=measurements)
            done = {name for name, status in states(config).items() if status is Status.DONE}
            return Stages(context, sample, rates, done)

        yield stages
