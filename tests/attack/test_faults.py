"""Faults of the surroundings, and files that change between two calls: one line, or the result."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from engine import COUNT, SEED, Box, Call, Strike, hold, lawless, untouched
from reference import References
from results import differences
from totals import count

pytestmark = pytest.mark.slow

FAULTS = max(3, COUNT // 4)


@dataclass(frozen=True)
class Fault:
    """A call in odd surroundings.

    Attributes:
        words: of the call; {run}, {user}, {box} and {hub} are filled in.
        name: of the fault in `zygote.FAULTS`.
        environment: variables to set.
        limits: of the process.
        refused: the call must fail. False: it must succeed. None: both are right.
        closed: folder of the user that may only be read.
    """

    words: str
    name: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    refused: bool | None = None
    closed: str = ""


PREDICT = "predict {run} {user}/val --device cpu"
TABLE = f"{PREDICT} --out {{box}}/out.csv"
CHECK = "check --labeled {user}/labeled --unlabeled {user}/pool --out {box}/out --data.resolution 16"
TRAIN = "run {user}/digits.yaml --labeled {user}/labeled --students 0 --out {box}/out"
HUB = "plan --labeled {user}/labeled --teacher.train.steps 1 --teacher.model.name resnet18 --out {box}/out"
PRETRAINED = f"{TRAIN} --teacher.model.name resnet18 --teacher.model.pretrained"
AGAIN = "run {user}/digits.yaml --labeled {user}/labeled --out {run}"
CHECK_IN = "check --labeled {user}/labeled --out {user}/pool/new/out"
LONG = "t" * 99
NOBODY = "no privileges"
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

SURROUNDINGS = {
    "closed stdout": Fault(PREDICT, "closed stdout"),
    "closed stdout of a run": Fault(TRAIN, "closed stdout"),
    "closed stdout of a list": Fault("recipes", "closed stdout"),
    "closed stderr": Fault(TABLE, "closed stderr"),
    "closed stdin": Fault(TABLE, "closed stdin", refused=False),
    "broken pipe": Fault(PREDICT, "broken pipe"),
    "broken pipe of a run": Fault(TRAIN, "broken pipe"),
    "broken pipe of a list": Fault("fields", "broken pipe"),
    "broken pipe, signal ignored": Fault("fields", "ignored SIGPIPE"),
    "full stdout": Fault(PREDICT, "full stdout", refused=True),
    "full stdout of a list": Fault("fields", "full stdout", refused=True),
    "full stdout of help": Fault("run --help", "full stdout"),
    "ASCII terminal": Fault(TABLE, environment=ASCII, refused=False),
    "ASCII terminal, help": Fault("--help", environment=ASCII, refused=False),
    "ASCII terminal, fields": Fault("fields", environment=ASCII, refused=False),
    "ASCII terminal, run": Fault(TRAIN, environment=ASCII, refused=False),
    "terminal of one column": Fault("fields", environment={"COLUMNS": "1"}, refused=False),
    "terminal of no column": Fault("run --help", environment={"COLUMNS": "0"}, refused=False),
    "dumb terminal": Fault(CHECK, environment={"TERM": "dumb"}, refused=False),
    "no HOME": Fault(TABLE, environment={"HOME": ""}, refused=False),
    "HOME that is not there": Fault(TABLE, environment={"HOME": "/nowhere"}, refused=False),
    "TMPDIR that is a file": Fault(TABLE, environment={"TMPDIR": "{user}/digits.yaml"}),
    "long TMPDIR with workers": Fault(
        f"{TRAIN} --data.workers 2 --data.plane streamed", environment={"TMPDIR": f"{{box}}/temporary/{LONG}"}
    ),
    "no working folder": Fault("status {run}", "no working folder"),
    "umask 777": Fault(CHECK, "umask 777"),
    "a run that may only be read": Fault("status {run}", NOBODY, closed="run", refused=False),
    "predict by a run that may only be read": Fault(PREDICT, NOBODY, closed="run", refused=False),
    "report of a run that may only be read": Fault(
        "report {run} --overwrite", NOBODY, closed="run", refused=True
    ),
    "a run again that may only be read": Fault(AGAIN, NOBODY, closed="run", refused=True),
    "images that may only be read": Fault(CHECK, NOBODY, closed="pool", refused=False),
    "out in a folder that may only be read": Fault(CHECK_IN, NOBODY, closed="pool", refused=True),
    "predict into a folder that may only be read": Fault(
        f"{PREDICT} --out {{user}}/pool/new/out.csv", NOBODY, closed="pool", refused=True
    ),
    "32 open files": Fault(TRAIN, limits={"RLIMIT_NOFILE": 32}),
    "12 open files": Fault("status {run}", limits={"RLIMIT_NOFILE": 12}),
    "64 open files with workers": Fault(
        f"{TRAIN} --data.workers 2 --data.plane streamed", limits={"RLIMIT_NOFILE": 64}
    ),
    "700 MB of memory": Fault(TRAIN, limits={"RLIMIT_DATA": 700 << 20}),
    "400 MB of memory": Fault(CHECK, limits={"RLIMIT_DATA": 400 << 20}),
    "offline": Fault(PRETRAINED, environment={"HF_HUB_OFFLINE": "1"}, refused=True),
    "hub refuses": Fault(
        PRETRAINED, environment={"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}, refused=True
    ),
    "hub hangs": Fault(PRETRAINED, environment={"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "{hub}"}, refused=True),
    "hub hangs, plan": Fault(HUB, environment={"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "{hub}"}),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """Address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def drawn(names: Iterator[str] | Mapping[str, object]) -> list[str]:
    """Return COUNT / 4 of the names, drawn with SEED."""
    every = sorted(names)
    random.Random(SEED).shuffle(every)
    return every[:FAULTS]


@pytest.mark.parametrize("name", drawn(SURROUNDINGS))
def test_odd_surroundings_give_a_result_or_one_line(
    request: pytest.FixtureRequest, references: References, box: Box, hub: str, name: str
) -> None:
    fault, reference = SURROUNDINGS[name], references["folder"]
    shutil.copytree(reference.run.parent / "user", box.user, dirs_exist_ok=True)
    shutil.copytree(reference.run, box.user / "run")
    if fault.closed:
        subprocess.run(["chmod", "-R", "a-w", str(box.user / fault.closed)], check=True)
    places = {"run": box.user / "run", "user": box.user, "box": box.path, "hub": hub}
    words = tuple(word.format(**places) for word in fault.words.split())
    environment = {key: value.format(**places) for key, value in fault.environment.items()}
    (box.temporary / LONG).mkdir()
    call = Call(words, fault=fault.name, environment=environment, limits=fault.limits, fresh=True)
    with untouched(box) as changed:
        outcome = references.zygote.run(call, box)
    count(request, "fault: surroundings", 1, name)
    broken = lawless(outcome) + changed
    if fault.refused is True and outcome.code == 0:
        broken.append("it must fail")
    if fault.refused is False and outcome.code != 0:
        broken.append("it must succeed")
    hold(call, outcome, broken, box)


# --- what changes between a run that was stopped and its next call ---


IMAGE = "pool/one/003.png"


def _fifo(user: Path, _: Path) -> None:
    (user / IMAGE).unlink()
    os.mkfifo(user / IMAGE)


def _copied(_: Path, run: Path) -> None:
    shutil.copytree(run, f"{run}-2")
    shutil.rmtree(run)
    Path(f"{run}-2").rename(run)


CHANGES: dict[str, tuple[Callable[[Path, Path], object], bool]] = {
    "an image is gone": (lambda user, run: (user / IMAGE).unlink(), False),
    "an image is another": (lambda user, run: shutil.copy(user / "val/six/025.png", user / IMAGE), False),
    "an image is empty": (lambda user, run: (user / IMAGE).write_bytes(b""), False),
    "an image is a FIFO": (_fifo, False),
    "an image is new": (lambda user, run: shutil.copy(user / IMAGE, user / "pool/new.png"), False),
    "an image is renamed": (lambda user, run: (user / IMAGE).rename(user / "pool/one/x.png"), False),
    "an image is touched": (lambda user, run: (user / IMAGE).touch(), False),
    "the pool is gone": (lambda user, run: shutil.rmtree(user / "pool"), False),
    "the labels are gone": (lambda user, run: shutil.rmtree(user / "labeled"), False),
    "the run is a copy": (_copied, True),
    "a file of the user is in the run": (lambda user, run: (run / "notes.txt").write_text("mine"), True),
    "the data is gone": (lambda user, run: shutil.rmtree(run / "data"), True),
    "the teacher is gone": (lambda user, run: shutil.rmtree(run / "iteration-0"), True),
    "the labels of the pool are gone": (lambda user, run: shutil.rmtree(run / "iteration-1/labels"), True),
    "the snapshots are gone": (lambda user, run: shutil.rmtree(run / "iteration-1/student/checkpoint"), True),
    "the student is gone": (lambda user, run: shutil.rmtree(run / "iteration-1/student"), True),
    "the curves are gone": (lambda user, run: shutil.rmtree(run / "tensorboard"), True),
}
"""Name to (function of the user's folder and the run, whether the run must end with the same bits)."""


@pytest.mark.parametrize("name", drawn(CHANGES))
def test_what_changes_between_two_calls_is_one_line_or_made_again(
    request: pytest.FixtureRequest, references: References, box: Box, name: str
) -> None:
    original = references["folder"]
    user, run = box.user, box.path / "run"
    shutil.copytree(original.run.parent / "user", user, dirs_exist_ok=True)
    old, new = str(original.run.parent / "user"), str(user)
    words = tuple(word.replace(old, new) for word in original.words)
    stop = Strike(operation=2)
    call = Call(
        (*words, "--out", str(run)),
        stop,
        below=f"{run}/iteration-1/student/checkpoint/.step-00000015.partial",
    )
    assert references.zygote.run(call, box).strikes == 1
    change, same = CHANGES[name]
    change(user, run)
    call = Call((*words, "--out", str(run)), below=str(run))
    with untouched(box) as changed:
        outcome = references.zygote.run(call, box)
    count(request, "fault: change between calls", 1, name)
    broken = lawless(outcome) + changed
    if same:
        broken += ["it must succeed"] if outcome.code else []
        lines = differences(run, original.results)
        broken += [line for line in lines if "notes.txt" not in line]
    hold(call, outcome, broken, box)
