"""Odd command lines: every command with every odd path, outputs that would hit a file of the user."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from inputs import LENIENT, SETS, Input


def _text(user: Path) -> None:
    (user / "odd").write_text("text\n")


def _locked(user: Path) -> None:
    (user / "odd").mkdir()
    (user / "odd" / ".noisystudent").symlink_to("../labeled/one/000.png")


def _loop(user: Path) -> None:
    (user / "odd").symlink_to("odd")


def _shop(user: Path) -> None:
    """A folder of a user with the names of our own files."""
    for name in ("store/a.png", "data/a.png", "iteration-0/a.png", "labels/a.parquet", "superseded/a"):
        (user / "odd" / name).parent.mkdir(parents=True)
        (user / "odd" / name).write_bytes(b"mine")
    for name in ("ledger.csv", "leaks.csv", "manifest.parquet", "config.yaml", "report.html", "stage.json"):
        (user / "odd" / name).write_text("mine")


def _copies(user: Path) -> None:
    """Links to the folder above in the folder: thirty levels, of which each has two."""
    folder = user / "odd"
    for _ in range(30):
        folder.mkdir()
        (folder / "a").symlink_to("next")
        (folder / "b").symlink_to("next")
        folder = folder / "next"
    folder.mkdir()


def _nested(user: Path) -> None:
    here = os.getcwd()
    os.chdir(user)
    try:
        for _ in range(1500):
            os.mkdir("odd")
            os.chdir("odd")
    finally:
        os.chdir(here)


def _deep(user: Path) -> None:
    """Folders in folders: 1,500 levels, and a path that is short enough for the system."""
    folder = user / "odd"
    for _ in range(1500):
        folder.mkdir()
        folder = folder / "d"


def _record(user: Path) -> None:
    (user / "odd").mkdir()
    (user / "odd" / "config.yaml").write_bytes(b"\xff\xfe\0")
    (user / "odd" / "stage.json").write_text("[" * 100_000)


PATHS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "nothing": ("{user}/odd", lambda user: None),
    "empty folder": ("{user}/odd", lambda user: (user / "odd").mkdir()),
    "empty file": ("{user}/odd", lambda user: (user / "odd").touch()),
    "text": ("{user}/odd", _text),
    "weights of text": ("{user}/odd.safetensors", lambda user: (user / "odd.safetensors").write_text("text")),
    "huge header": (
        "{user}/odd.safetensors",
        lambda user: (user / "odd.safetensors").write_bytes(b"\xff" * 7 + b"\0{}"),
    ),
    "dev-null": ("/dev/null", lambda user: None),
    "dev-zero": ("/dev/zero", lambda user: None),
    "fifo": ("{user}/odd", lambda user: os.mkfifo(user / "odd")),
    "link loop": ("{user}/odd", _loop),
    "long name": ("{user}/" + "a" * 300, lambda user: None),
    "long path": ("{user}/" + "a/" * 2500, lambda user: None),
    "deep folders": ("{user}/odd", _deep),
    "path beyond 4,096 bytes": ("{user}/odd", _nested),
    "diamonds": ("{user}/odd", _copies),
    "folder of a user": ("{user}/odd", _shop),
    "marker is a link": ("{user}/odd", _locked),
    "odd records": ("{user}/odd", _record),
    "images": ("{user}/labeled", lambda user: None),
    "escape in name": ("{user}/\x1b[31modd", lambda user: (user / "\x1b[31modd").mkdir()),
}
"""Kind of path to (path, what makes it)."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "run out": ("run", "{user}/digits.yaml", *SETS, "--out", "{odd}", "--students", "0", *LENIENT),
    "check out": ("check", *SETS, "--out", "{odd}", *LENIENT),
    "check pool": (
        "check",
        "--labeled",
        "{user}/labeled",
        "--unlabeled",
        "{odd}",
        "--out",
        "{out}",
        *LENIENT,
    ),
    "plan out": ("plan", *SETS, "--out", "{odd}", "--teacher.train.steps", "3"),
    "status": ("status", "{odd}"),
    "report": ("report", "{odd}"),
    "predict model": ("predict", "{odd}", "{user}/val", "--out", "{out}.csv"),
    "predict images": ("predict", "{run}", "{odd}", "--out", "{out}.csv"),
    "predict out": ("predict", "{run}", "{user}/val", "--out", "{odd}", "--format", "csv"),
    "evaluate data": ("evaluate", "{run}", "--data", "{odd}", "--out", "{out}.json"),
    "label pool": ("label", "{run}", "--unlabeled", "{odd}", "--out", "{out}"),
    "label out": ("label", "{run}", "--unlabeled", "{user}/val", "--out", "{odd}"),
    "select labels": ("select", "{odd}", "--out", "{out}.parquet"),
    "export out": ("export", "{run}", "--out", "{odd}"),
    "export run": ("export", "{odd}", "--out", "{out}.safetensors"),
}
"""Name to the words of a call with an odd path, {odd}."""

MAKES_OUT = {"run out", "check out", "label out", "predict out", "export out", "report"}

LINES: dict[str, tuple[tuple[str, ...], bool | None]] = {
    "no command": ((), None),
    "unknown command": (("rum",), True),
    "empty command": (("",), True),
    "escape as command": (("\x1b[31m",), True),
    "no value": (("run", "--labeled"), True),
    "empty value": (("run", "--labeled", ""), True),
    "empty value after =": (("run", "--labeled="), True),
    "unknown flag": (("run", "--labelled", "x"), True),
    "flag twice": (("plan", *SETS, "--seed", "1", "--seed", "2"), None),
    "too many words": (("status", "a", "b"), True),
    "no out": (("check", *SETS, *LENIENT), None),
    "help": (("--help",), False),
    "help of run": (("run", "--help"), False),
    "version": (("--version",), False),
    "recipes": (("recipes",), False),
    "recipe unknown": (("recipes", "nothing"), True),
    "recipe as path": (("recipes", "../../etc/passwd"), True),
    "fields": (("fields",), False),
    "predict nothing": (("predict", "{run}"), True),
    "predict out no suffix": (("predict", "{run}", "{user}/val", "--out", "{out}"), True),
    "predict out odd suffix": (("predict", "{run}", "{user}/val", "--out", "{out}.txt"), True),
    "predict over an image": (
        ("predict", "{run}", "{user}/val/one/000.png", "--out", "{user}/val/one/000.png"),
        True,
    ),
    "predict odd format": (("predict", "{run}", "{user}/val", "--format", "xml"), True),
    "out under proc": (("check", *SETS, "--out", "/proc/odd", *LENIENT), True),
    "out under a file": (("check", *SETS, "--out", "{user}/digits.yaml/odd", *LENIENT), True),
    "out is the labels": (("run", *SETS, "--out", "{user}/labeled"), True),
    "out is the folder of a user": (("run", *SETS, "--out", "{user}"), True),
    "pool is the labels": (
        ("check", "--labeled", "{user}/labeled", "--unlabeled", "{user}/labeled", "--out", "{out}", *LENIENT),
        None,
    ),
    "pool is the run": (
        ("check", "--labeled", "{user}/labeled", "--unlabeled", "{run}", "--out", "{out}", *LENIENT),
        True,
    ),
    "one class": (
        (
            "check",
            "--labeled",
            "{user}/labeled/one",
            "--unlabeled",
            "{user}/pool",
            "--out",
            "{out}",
            *LENIENT,
        ),
        True,
    ),
    "epochs and steps": (("plan", *SETS, "--teacher.train.steps", "1", "--teacher.train.epochs", "1"), None),
    "processes -1": (("run", *SETS, "--out", "{out}", "--processes", "-1"), True),
    "debug alone": (("--debug",), None),
    "1,000 flags": (("plan", *SETS, *(f"--seed={number}" for number in range(1000))), None),
    "flag of 100 kB": (("plan", *SETS, "--name", "x" * 100_000), None),
    "evaluate a network": (("evaluate", "resnet18", "--data", "{user}/val"), True),
    "evaluate an unknown network": (("evaluate", "no_such_net", "--data", "{user}/val"), True),
}
"""Name to (words, whether the call must be refused)."""


def inputs() -> list[Input]:
    """Return every odd command line, and every command with every kind of odd path."""
    made = [
        Input(f"line {name}", words, refused=refused, made=("runs",))
        for name, (words, refused) in LINES.items()
    ]
    for kind, (path, make) in PATHS.items():
        for name, words in COMMANDS.items():
            filled = tuple(word.replace("{odd}", path) for word in words)
            # An output may be made where there is nothing, or in an empty folder.
            free = name in MAKES_OUT and kind in ("nothing", "empty folder", "escape in name")
            own = ("odd", "\x1b[31modd") if free else ()
            made.append(Input(f"{name}: {kind}", filled, make, made=own))
    return made
