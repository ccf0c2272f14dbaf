"""The commands for whole runs: make a run, plan it, print its status, and check its images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from noisystudent.cli import screen
from noisystudent.cli.fields import (
    NO_IMAGES,
    NO_LABELS,
    NO_LOOP,
    NO_SETTINGS,
    TEXT,
    Budget,
    Fields,
    Images,
    Labels,
    Logging,
    Loop,
    Processes,
    Settings,
    configure,
    recorded,
)
from noisystudent.errors import InputError

# Everything that imports torch is imported inside the commands, so that `--help` and errors come at once.
if TYPE_CHECKING:
    from noisystudent.config import Config
    from noisystudent.data.sources import Sources


def run(
    recipe: str | None = None,
    /,
    *,
    images: Images = NO_IMAGES,
    settings: Loop = NO_LOOP,
    budget: Budget = None,
    processes: Processes = None,
    logging: Logging = TEXT,
    fields: Fields,
) -> None:
    """Train a teacher, label the pool, train students, and write models, verdict and report to a folder.

    A second call resumes the run, and repeats only the stages whose inputs changed. `run --out RUN` alone
    resumes it with the images and the settings of the first call; flags that are given again override them.
    A run of more than a minute is measured first, as by `plan`, and its time, memory and disk are printed.

    Parameters
    ----------
    recipe
        Name of a recipe, or a YAML file. Default: that of the run in --out, and folder for a new run.
    """
    config, folder = configure(recipe, settings, images, fields)
    resumed = recipe is None and recorded(settings) is not None
    if recipe is None and settings.out is not None and not config.data.labeled:
        raise InputError(
            f"--out is {folder}, a run on images in memory; resume it by `noisystudent demo --out {folder}`,"
            " or from Python with the same arrays"
            if resumed
            else f"--out is {folder}, no run yet; check the name, or give --labeled to begin a new run"
        )
    if resumed and images.unlabeled and not config.students and settings.students is None:
        raise InputError(
            f"--out is {folder}, which has no students (`train` made it); add them: `noisystudent run folder`"
        )
    _run(config, folder, logging, resumed=resumed, processes=processes, budget=budget)


def demo(*, settings: Loop = NO_LOOP, logging: Logging = TEXT, fields: Fields) -> None:
    """Make a whole run on scikit-learn's digits with five labels per class, in minutes on two CPU cores.

    The run directory has the same files as that of `run`, and is resumed in the same way.
    """
    from noisystudent.data.sources import with_given_labels
    from noisystudent.data.sources.digits import digits

    config, folder = configure(None, settings, NO_LABELS, fields, default="demo")
    if config.data.labeled:
        raise InputError(
            f"--out is {folder}, a run on {', '.join(config.data.labeled)}; resume it with"
            f" `noisystudent run --out {folder}`, or choose another folder"
        )
    sources = with_given_labels(digits(config.seed), config.data)
    _run(config, folder, logging, sources, resumed=recorded(settings) is not None)


def train(
    recipe: str | None = None,
    /,
    *,
    labels: Labels = NO_LABELS,
    settings: Settings = NO_SETTINGS,
    processes: Processes = None,
    logging: Logging = TEXT,
    fields: Fields,
) -> None:
    """Train only the teacher of a recipe, on the labelled images, and write model and report to a folder.

    Parameters
    ----------
    recipe
        Name of a recipe, or a YAML file. Default: that of the run in --out, and folder for a new run.
    """
    from noisystudent.run.rundir import RunDir

    before = recorded(settings) if recipe is None else None
    if before is not None and RunDir(before.parent).student_count():
        raise InputError(
            f"--out is {before.parent}, a run with students; resume it with `noisystudent run --out"
            f" {before.parent}`, or choose another folder"
        )
    # A run without students ends after the teacher.
    run(
        recipe,
        images=Images(**asdict(labels)),
        settings=Loop(**asdict(settings), students=0),
        processes=processes,
        logging=logging,
        fields=fields,
    )


def plan(
    recipe: str | None = None,
    /,
    *,
    images: Images = NO_IMAGES,
    settings: Loop = NO_LOOP,
    budget: Budget = None,
    json: bool = False,
    fields: Fields,
) -> None:
    """Print which stages `run` with the same arguments would make, why, and what they take.

    Nothing is written. A few steps of each different training are measured, and a few batches of each
    labelling. The row `whole` is the sum of the stages that are not done.

    Parameters
    ----------
    recipe
        Name of a recipe, or a YAML file. Default: that of the run in --out, and folder for a new run.
    json
        Print the figures as one JSON object, with the settings that --budget has chosen.
    """
    from noisystudent.data.sources import listing_fingerprint, open_sources
    from noisystudent.inference.existing import fingerprints
    from noisystudent.run.build import build_graph
    from noisystudent.run.estimate import COLUMNS, as_json, planned_rows
    from noisystudent.run.rundir import RunDir
    from noisystudent.run.status import states
    from noisystudent.self_training.budget import describe
    from noisystudent.self_training.planning import plan as measure

    config, folder = configure(recipe, settings, images, fields)
    sources = open_sources(config.data)
    with screen.progress(stderr=True) as progress:
        config, planned = measure(config, sources, folder, budget=budget, progress=progress)
    if json:
        screen.line(as_json(planned.stages, config))
        return
    graph = build_graph(config, listing_fingerprint(sources), RunDir(folder), fingerprints(config))
    rows = planned_rows(states(graph, RunDir(folder)), planned.stages)
    screen.table(("stage", "state", "where", *COLUMNS), rows)
    if budget is not None:
        for line in describe(config):
            screen.line(line)


def status(
    run: Path,
    /,
    *,
    watch: bool = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Print which stages of a run are done, how long they took, and what is left of all trainings.

    Parameters
    ----------
    run
        Run directory.
    watch
        Print the table again every two seconds until no process works in the folder.
    json
        Print a JSON object in place of the table; with --watch one a line. docs/status.md names its keys.
    """
    from noisystudent.run.lock import is_locked
    from noisystudent.run.rundir import RunDir
    from noisystudent.run.status import recorded
    from noisystudent.run.summary import summarize

    header, place = ("stage", "state", "seconds", "finished"), RunDir(run)

    def repeat(show: Callable[[], None]) -> None:
        while watch and is_locked(run):
            show()
            time.sleep(2)
        show()  # after the end: all that the run wrote

    if json:
        repeat(lambda: screen.json_line(summarize(place).as_dict()))
        return
    with screen.changing_table(header) as show:
        repeat(lambda: show(recorded(place), summarize(place).line()))


def check(*, images: Images = NO_IMAGES, out: Path | None = None, fields: Fields) -> None:
    """Check images before a run: unreadable files, duplicates, leaks between sets.

    Their numbers, and those of the images of each set and class, are printed. Nothing is trained.

    Parameters
    ----------
    out
        Folder of the lists ledger.csv and leaks.csv, and of the decoded images. Default: nothing is kept.
    """
    from noisystudent import self_training
    from noisystudent.data.sources import open_sources

    config, _ = configure("folder", NO_SETTINGS, images, fields)
    with screen.progress() as progress:
        for line in self_training.audit(config, open_sources(config.data), out, progress=progress):
            progress.say(line)


def _run(
    config: Config,
    folder: Path,
    logging: Logging,
    sources: Sources | None = None,
    *,
    resumed: bool = False,
    processes: int | None = None,
    budget: float | None = None,
) -> None:
    from noisystudent.console import Logged
    from noisystudent.data.sources import open_sources
    from noisystudent.distributed import joined, local_size
    from noisystudent.metrics.headline import lines
    from noisystudent.report import build
    from noisystudent.run.files import read_json
    from noisystudent.run.launch import launch, launched, uses_gpus
    from noisystudent.run.lock import check_usable
    from noisystudent.run.rundir import RunDir
    from noisystudent.run.status import scores
    from noisystudent.self_training import self_train
    from noisystudent.self_training.planning import plan_long
    from noisystudent.trackers import Tracked, track

    if processes is not None and not launched(processes):
        _refuse_budget(budget, processes)
        launch(processes, config.device)
        return
    as_json, gpus = logging.log_format == "json", uses_gpus(config.device, local_size())
    with joined(gpus) as everyone, screen.progress(json=as_json, silent=not everyone.is_main) as progress:
        if resumed:
            progress.say(f"resuming {folder} as its config.yaml says: {_summary(config)}")
        tracked = Tracked(progress, folder, logging.tracker if everyone.is_main else ())
        _refuse_budget(budget, everyone.size)
        if everyone.size == 1 and sources is None:  # the demo takes minutes anywhere
            sources = open_sources(config.data)
            check_usable(folder)
            config = plan_long(config, sources, folder, budget=budget, progress=progress)
        self_train(config, folder, sources=sources, progress=tracked)
        if not everyone.is_main:
            return
        page = build(folder)
        if not as_json:  # which has printed these numbers
            screen.table(("model", "set", "top-1", "top-5", "NLL", "ECE"), scores(RunDir(folder)))
        logged = Logged(progress, RunDir(folder).log)
        for line in (*lines(read_json(RunDir(folder).verdict)), f"report: {page}"):
            logged.say(line)
        track(folder, logging.tracker)  # also the stages that an earlier call has finished


def _refuse_budget(budget: float | None, processes: int) -> None:
    """Raise InputError if there are several processes and a budget: the pace of one is measured."""
    if budget is not None and processes > 1:
        raise InputError(
            f"--budget is given, and there are {processes} processes, but the pace of one is measured; leave"
            " --budget out, or run a single process"
        )


def _summary(config: Config) -> str:
    """The images of a run and its number of students, in a few words."""
    sets = (("labelled", config.data.labeled), ("pool", config.data.unlabeled))
    images = [f"{name} {', '.join(paths)}" for name, paths in sets if paths]
    return ", ".join([*images, f"students {len(config.students)}", f"seed {config.seed}"])


COMMANDS = (run, demo, plan, status, check, train)
