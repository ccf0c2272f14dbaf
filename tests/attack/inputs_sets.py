"""How a set of images in one odd file is given to the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from inputs import LENIENT, Input
from inputs_images import encoded

Data = bytes | Callable[[], bytes]
"""Content of a file; a function for those that take long to make."""

IMAGES = [
    encoded("PNG"),
    encoded("PNG", "L"),
    encoded("BMP"),
    encoded("JPEG"),
    encoded("GIF"),
    encoded("WEBP"),
]
CLASSES = ["one", "seven", "six"] * 2


def _write(name: str, data: Data, user: Path) -> None:
    (user / name).write_bytes(data if isinstance(data, bytes) else data())


def _scan(flag: str, file: str) -> tuple[str, ...]:
    others = ("--labeled", "{user}/labeled") if flag == "--unlabeled" else ("--unlabeled", "{user}/pool")
    return ("check", flag, f"{{user}}/{file}", *others, "--out", "{out}", *LENIENT)


def scanned(kind: str, files: Mapping[str, tuple[Data, bool | None]]) -> list[Input]:
    """Return every file as the labelled images, and, unless its labels are what is odd, as the pool.

    Args:
        kind: suffix of the files.
        files: name to (content, whether it must be refused as labelled images).
    """
    made = []
    for name, (data, refused) in files.items():
        write = partial(_write, f"odd.{kind}", data)
        words = _scan("--labeled", f"odd.{kind}")
        # A split needs two images of each class: whether that is so does not matter here.
        made.append(Input(f"{kind} labelled {name}", words, write, refused=refused or None))
        if "label" not in name and "names" not in name:
            words = _scan("--unlabeled", f"odd.{kind}")
            made.append(Input(f"{kind} pool {name}", words, write, refused=None if refused else refused))
    return made
