"""A damaged file of a run is named and made again, or it is named and nothing is done."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from engine import COUNT, SEED, Box, hold, lawless, untouched
from reference import References, again, copied
from results import REMADE, differences
from totals import count

pytestmark = pytest.mark.slow


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _copy(path: Path, _: random.Random) -> None:
    shutil.copy(path, path.with_name(f"{path.stem} (copy){path.suffix}"))


def _rename(path: Path, _: random.Random) -> None:
    path.rename(path.with_name(f"{path.stem} (copy){path.suffix}"))


def _folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "emptied": lambda path, rng: path.write_bytes(b""),
    "halved": lambda path, rng: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit flipped": _flip,
    "removed": lambda path, rng: path.unlink(),
    "garbage": lambda path, rng: path.write_bytes(rng.randbytes(path.stat().st_size)),
    "copy under another name": _copy,
    "renamed": _rename,
    "a folder in its place": _folder,
}

# Patterns, because a training names its snapshots by their steps.
_DATA = (
    "stage.json dataset.json manifest.parquet ledger.csv leaks.csv "
    "store/labeled.npy store/labeled.arrow store/pool.npy store/pool.arrow store/val.npy store/test.arrow"
)
_MODEL = "stage.json model.safetensors metrics.jsonl predictions-val.npz predictions-test.npz"
_RUN = (
    ".noisystudent config.yaml environment.json metrics.jsonl report.html run.log schedule.json verdict.json "
    "verdict.stage.json"
)
_POOL = (
    "labels/stage.json labels/parts.json labels/energies.npy labels/part-00000.parquet "
    "labels/part-00001.parquet selection.parquet selection.stage.json"
)


def _below(folder: str, names: str) -> list[str]:
    return [f"{folder}{name}" for name in names.split()]


FINISHED = [
    *_below("", _RUN),
    *_below("data/", _DATA),
    *_below("iteration-0/teacher/", _MODEL),
    *_below("iteration-1/", f"{_POOL} evaluation.json gallery.json"),
    *_below("iteration-1/student/", _MODEL),
    *_below("iteration-1/control/", _MODEL),
]
INTERRUPTED = [
    *_below("", ".noisystudent config.yaml environment.json run.log schedule.json"),
    *_below("data/", _DATA),
    *_below("iteration-0/teacher/", "stage.json model.safetensors metrics.jsonl predictions-val.npz"),
    *_below("iteration-1/", _POOL),
    *_below("iteration-1/student/", "stage.json metrics.jsonl targets.npy"),
    *_below(
        "iteration-1/student/checkpoint/",
        "step-*/.metadata step-*/__0_0.distcp step-*/checksums.json step-*/metrics.jsonl",
    ),
]
STATES = {"finished": FINISHED, "interrupted": INTERRUPTED}


def cases() -> list[tuple[str, str, str]]:
    """Return (state, file, damage): COUNT of them, or all there are; drawn with SEED."""
    every = [(state, file, damage) for state, files in STATES.items() for file in files for damage in DAMAGES]
    random.Random(SEED).shuffle(every)
    return every[:COUNT]


def file_of(run: Path, pattern: str) -> Path:
    """Return the newest file of a pattern."""
    return sorted(run.glob(pattern))[-1]


def named(text: str, file: Path, run: Path) -> bool:
    """Return True if a line names the file, its snapshot, or, for the marker of a run, the run."""
    relative = file.relative_to(run)
    names = [str(relative), *([relative.parent.name] if "checkpoint" in relative.parts else ())]
    if relative.name == ".noisystudent":
        names.append(run.name)
    return any(name in line for name in names for line in text.splitlines())


@pytest.mark.parametrize("state, pattern, damage", cases(), ids=lambda value: value.replace("/", ":"))
def test_a_damaged_file_is_named(
    request: pytest.FixtureRequest, references: References, box: Box, state: str, pattern: str, damage: str
) -> None:
    reference = references["folder"]
    run = copied(reference.run if state == "finished" else references.interrupted("folder"), box)
    file = file_of(run, pattern)
    count(request, f"artefact: {damage}", 1, f"{state} {pattern}")
    DAMAGES[damage](file, random.Random(f"{SEED} {state} {pattern}"))
    with untouched(box) as changed:
        call, outcome = again(references.zygote, reference, box)
    text = outcome.out + outcome.err
    broken = lawless(outcome, (0, 1, 2)) + changed
    # A spare copy changes nothing, so it need not be named; files that each call writes again neither, nor a
    # flipped bit that no reader sees: a zip file repeats the date of each of its arrays, for example.
    quiet = outcome.code == 0 and (
        damage == "copy under another name"
        or file.relative_to(run).parts[0] in REMADE
        or file.name == "targets.npy"
        or (state == "interrupted" and file.name == "metrics.jsonl")  # a snapshot has a copy
        or (file.name.startswith("predictions-") and damage in ("removed", "renamed"))  # made when needed
        or (damage == "one bit flipped" and file.suffix == ".npz")
    )
    if not quiet and not named(text, file, run):
        broken.append(f"no line names {file.relative_to(run)}")
    if outcome.code in (1, 2) and "delete" in outcome.err:
        advised = file if str(file.relative_to(run)) in outcome.err else file.parent
        shutil.rmtree(advised) if advised.is_dir() else advised.unlink(missing_ok=True)
        call, outcome = again(references.zygote, reference, box)
        if outcome.code != 0:
            broken.append("the line advises to delete the file; done, and the run fails again")
    if outcome.code == 0:
        spare = f"{file.stem} (copy){file.suffix}"
        broken += [line for line in differences(run, reference.results) if spare not in line]
    hold(call, outcome, broken, box)


def test_every_file_of_a_run_is_attacked(references: References) -> None:
    """A new artefact belongs into the lists above."""
    for state, run in (
        ("finished", references["folder"].run),
        ("interrupted", references.interrupted("folder")),
    ):
        listed = {path for pattern in STATES[state] for path in run.glob(pattern)}
        names = {path.name for path in listed}
        every = {path for path in run.rglob("*") if path.is_file() and "tensorboard" not in path.parts}
        # Of files with the same name, such as the columns of four sets, two are enough.
        spare = {path for path in every if path.suffix in (".npy", ".arrow") or path.name.startswith("part-")}
        if state == "finished":  # nothing reads the snapshots of a finished training
            spare |= {path for path in every if "checkpoint" in path.parts}
        assert {
            str(path.relative_to(run)) for path in every - listed - spare if path.name not in names
        } == set()
