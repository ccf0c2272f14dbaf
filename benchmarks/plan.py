"""The plan of a run against the run, for four small settings: seconds of each stage, planned and measured.

    python benchmarks/plan.py
    python benchmarks/plan.py --settings demo folder

Each setting is planned and then run in a new process of its own. `wall` is the sum of the seconds that the
run recorded of its stages, which is what the plan predicts. CPU seconds are of the run alone. The images of
three settings are unpacked from ../shared/data; without it they are skipped.

The package is imported in functions: worker processes import this module again, as they import any script
that starts a run, and the commands of the package have no such script.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noisystudent.config import Config
    from noisystudent.data.sources import Sources

_SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
Setting = tuple["Config", "Sources"]


def demo(_work: Path) -> Setting:
    """The demo with two of its three students."""
    from noisystudent import recipes
    from noisystudent.data.sources.digits import digits

    return recipes.load("demo", [("students", 2)]), digits(0)


def cifar10_cpu(work: Path) -> Setting:
    """The recipe cifar10-cpu with fewer steps and images, without its robustness tests."""
    steps = [("teacher.train.steps", 400), ("student.train.steps", 600), ("evaluate.tests", [])]
    return _on(work, "cifar10", "cifar10-cpu", (1000, 6000), steps)


def folder(work: Path) -> Setting:
    """The recipe folder on photographs of 64 pixels, from random weights."""
    plain = {"name": "resnet8_16", "pretrained": False}
    changes = [("teacher.model", plain), ("students", 1), ("data.resolution", 64)]
    changes += [("teacher.train.epochs", 80), ("student.train.epochs", 40), ("control", ["same_steps"])]
    return _on(work, "tinyimagenet", "folder", (600, 2400), changes, classes=6)


def photos(work: Path) -> Setting:
    """The recipe photos, on the cached features of a ResNet-18 with random weights."""
    changes = [("teacher.model.name", "resnet18"), ("teacher.model.pretrained", False)]
    changes += [("data.resolution", 64), ("students", 1), ("control", ["same_steps"])]
    return _on(work, "tinyimagenet", "photos", (500, 2500), changes)


SETTINGS: dict[str, Callable[[Path], Setting]] = {
    "demo": demo,
    "cifar10-cpu": cifar10_cpu,
    "folder": folder,
    "photos": photos,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--one", choices=SETTINGS, help="plan and run this one in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.one is not None:
        with tempfile.TemporaryDirectory() as work:
            print(json.dumps(compare(*SETTINGS[arguments.one](Path(work)), Path(work) / "run")))
        return
    print(f"{'setting':14}{'plan took':>11}{'planned':>10}{'wall':>9}{'ratio':>8}{'CPU':>9}")
    for name in arguments.settings:
        if name != "demo" and not _SHARED.is_dir():
            print(f"{name:14} skipped: ../shared/data is not there")
            continue
        command = [sys.executable, __file__, "--one", name]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(
            f"{name:14}{row['plan']:9.1f} s{row['planned']:8.1f} s{row['wall']:7.1f} s"
            f"{row['planned'] / row['wall']:8.2f}{row['cpu']:7.1f} s"
        )
        for stage, (planned, wall) in row["stages"].items():
            print(f"  {stage:23}{planned:8.1f} s{wall:7.1f} s")
        if row["stopped"]:
            print(f"  stopped, and compared up to there: {row['stopped']}")


def compare(config: Config, sources: Sources, out: Path) -> dict[str, object]:
    """Plan and run a configuration; all results are seconds, those of a stage are (planned, wall)."""
    from noisystudent.console import Progress
    from noisystudent.errors import RunError
    from noisystudent.run.estimate import whole
    from noisystudent.run.record import read_record, records
    from noisystudent.run.rundir import RunDir
    from noisystudent.self_training import self_train
    from noisystudent.self_training.planning import plan

    begin = time.perf_counter()
    _, planned = plan(config, sources, out, progress=Progress())
    took = time.perf_counter() - begin
    cpu, stopped = time.process_time(), ""
    try:
        self_train(config, out, sources=sources)
    except RunError as error:  # a model of so few steps may be refused as a teacher
        stopped = str(error)
    cpu = time.process_time() - cpu
    done = {
        record["name"]: record["seconds"] for path in records(RunDir(out)) if (record := read_record(path))
    }
    stages = [one for one in planned.stages if done.get(one.stage) is not None]
    return {
        "plan": took,
        "planned": whole(stages).seconds,
        "wall": sum(done[one.stage] for one in stages),
        "cpu": cpu,
        "stopped": stopped,
        "stages": {one.stage: (one.seconds, done[one.stage]) for one in stages},
    }


def _on(
    work: Path,
    name: str,
    recipe: str,
    sizes: tuple[int, int],
    changes: list[tuple[str, object]],
    classes: int | None = None,
) -> Setting:
    """A recipe on some images of a data set: of each class the first are labelled, the next are the pool."""
    from noisystudent import recipes
    from noisystudent.data.sources import open_sources

    for part in ("train", "test"):
        with tarfile.open(_SHARED / name / f"{part}.tar.xz") as archive:
            archive.extractall(work, filter="data")
    labels = sorted(folder.name for folder in (work / "train").iterdir())
    for label in labels[classes:] if classes else ():
        shutil.rmtree(work / "train" / label)
        shutil.rmtree(work / "test" / label)
    labels = labels[:classes]
    for kind, count in zip(("labeled", "pool"), sizes, strict=True):
        for label in labels:
            target = work / kind / label
            target.mkdir(parents=True)
            for image in sorted((work / "train" / label).iterdir())[
                : count // len(labels)
            ]:  # those that are left
                image.rename(target / image.name)
    sets = [("labeled", "labeled"), ("unlabeled", "pool"), ("test", "test")]
    given = [(f"data.{field}", [str(work / folder)]) for field, folder in sets]
    config = recipes.load(recipe, [*given, *changes])
    return config, open_sources(config.data)


if __name__ == "__main__":
    main()
