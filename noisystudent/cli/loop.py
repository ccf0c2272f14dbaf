"""Commands about a whole run: make it, say what it would do, say where it stands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from noisystudent.cli import screen
from noisystudent.cli.fields import (
    NO_IMAGES,
    NO_LABELS,
    NO_LOOP,
    NO_SETTINGS,
    Fields,
    Images,
    Labels,
    Loop,
    Settings,
    configure,
)

if TYPE_CHECKING:
    from noisystudent.config import Config
    from noisystudent.data.sources import Sources


def run(
    recipe: str = "folder", /, *, images: Images = NO_IMAGES, settings: Loop = NO_LOOP, fields: Fields
) -> None:
    """Teacher, pseudo-labels, selection, students, control, verdict, report; again: go on, redo what changed.

    Parameters
    ----------
    recipe
        A recipe's name or a YAML file.
    """
    from noisystudent.data.sources import open_sources

    config, folder = configure(recipe, settings, images, fields)
    _run(config, open_sources(config.data), folder)


def demo(*, settings: Loop = NO_LOOP, fields: Fields) -> None:
    """The whole loop on scikit-learn's digits, ten labels a class, in minutes on two CPU cores."""
    from noisystudent.demo import digits

    config, folder = configure("demo", settings, NO_LABELS, fields)
    _run(config, digits(config.seed), folder)


def train(
    recipe: str = "folder", /, *, labels: Labels = NO_LABELS, settings: Settings = NO_SETTINGS, fields: Fields
) -> None:
    """Train the recipe's teacher on the labels alone.

    Parameters
    ----------
    recipe
        A recipe's name or a YAML file.
    """
    run(recipe, images=Images(**asdict(labels)), settings=Loop(**asdict(settings), students=0), fields=fields)


def plan(
    recipe: str = "folder", /, *, images: Images = NO_IMAGES, settings: Loop = NO_LOOP, fields: Fields
) -> None:
    """What `run` with the same arguments would do, stage by stage, and why.

    Parameters
    ----------
    recipe
        A recipe's name or a YAML file.
    """
    from noisystudent import planning
    from noisystudent.data.sources import open_sources

    config, folder = configure(recipe, settings, images, fields)
    graph = planning.plan(config, open_sources(config.data), folder)
    screen.table(("stage", "state", "where"), planning.states(graph, folder))


def status(run: Path, /) -> None:
    """Where a run stands."""
    from noisystudent import planning

    screen.table(("stage", "state", "seconds", "finished"), planning.recorded(run))


def check(*, images: Images = NO_IMAGES, out: Path = Path("runs/check"), fields: Fields) -> None:
    """Audit the images: unreadable files, duplicates, leaks into val or test, counts. Trains nothing."""
    from noisystudent import self_training
    from noisystudent.data.sources import open_sources

    config, _ = configure("folder", NO_SETTINGS, images, fields)
    with screen.voice() as (voice, stop):
        for line in self_training.audit(config, open_sources(config.data), out, stop=stop, voice=voice):
            voice.say(line)


def _run(config: Config, sources: Sources, folder: Path) -> None:
    from noisystudent import planning, self_training
    from noisystudent.report import build
    from noisystudent.rundir import read_json

    with screen.voice(folder / "run.log") as (voice, stop):
        voice.say(f"run: {folder}")
        self_training.self_train(config, sources, folder, stop=stop, voice=voice)
        page = build(folder)
        screen.table(("model", "set", "top-1", "top-5", "NLL", "ECE"), planning.scores(folder))
        verdict = read_json(folder / "verdict.json")
        for line in (verdict["sentence"], *verdict["reasons"], f"report: {page}"):
            voice.say(line)


COMMANDS = (run, demo, plan, status, check, train)
