"""Which classes and labels count on ImageNet-A, -R, V2, Sketch and ReaL."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError
from noisystudent.evaluate import data

Logits = TypeVar("Logits", Tensor, NDArray[np.floating[Any]])

V2_CLASSES = 1000

_SUBSETS = {"a": "ImageNet-A", "r": "ImageNet-R"}
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\b")


@dataclass(frozen=True, slots=True)
class Subset:
    """Some of ImageNet's classes; an image of theirs is judged among them alone.

    Attributes:
        name: as people write it.
        wnids: their WordNet ids, which are the names of the class folders, in the order of the kept logits.
        classes: their positions among the 1000 logits, ascending.
    """

    name: str
    wnids: tuple[str, ...]
    classes: tuple[int, ...]


@cache
def imagenet_classes() -> tuple[str, ...]:
    """WordNet ids of ImageNet's 1000 classes, in the order of a model's logits."""
    return tuple(data.read_text("imagenet_wnids.txt").split())


@cache
def subset(test: str) -> Subset:
    """The 200 classes of ImageNet-A (`a`) or ImageNet-R (`r`).

    Raises:
        InputError: any other name.
    """
    if test not in _SUBSETS:
        raise InputError(f"{test!r} has no class subset; a (ImageNet-A) and r (ImageNet-R) have")
    wnids = tuple(data.read_text(f"imagenet_{test}_wnids.txt").split())
    position = {wnid: row for row, wnid in enumerate(imagenet_classes())}
    return Subset(_SUBSETS[test], wnids, tuple(position[wnid] for wnid in wnids))


def restrict(logits: Logits, kept: Subset) -> Logits:
    """(N, 1000) logits -> (N, C) of the kept classes, to be taken before any argmax or softmax.

    Raises:
        InputError: the logits are not those of ImageNet's 1000 classes.
    """
    if logits.ndim != 2 or logits.shape[1] != len(imagenet_classes()):
        raise InputError(
            f"logits are {tuple(logits.shape)}; {kept.name} needs a model of ImageNet's 1000 classes"
        )
    return logits[:, list(kept.classes)]


def subset_labels(labels: NDArray[np.integer[Any]], kept: Subset) -> NDArray[np.int64]:
    """(N,) labels among the 1000 classes -> (N,) int64 positions among the kept ones, -1 for all others.

    With it the clean images of the same classes are scored, so that the gap is not one of classes.
    """
    position = np.full(len(imagenet_classes()), -1, dtype=np.int64)
    position[list(kept.classes)] = np.arange(len(kept.classes))
    return np.asarray(position[labels])


def imagenet_labels(test: str, folders: Sequence[str]) -> NDArray[np.int64]:
    """The label of each class folder of an ImageNet test: among 200 for `a` and `r`, else among 1000.

    Args:
        test: `v2`, whose folders are class numbers; any other test has WordNet ids.
        folders: names of the class folders, in any order.

    Raises:
        InputError: a folder is no class of that test.
    """
    if test == "v2":
        return numeric_labels(folders)
    return folder_labels(folders, subset(test).wnids if test in _SUBSETS else imagenet_classes())


def folder_labels(folders: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """(F,) int64: where each folder's name stands among the model's classes.

    A class without a folder is no error: it has no images.

    Raises:
        InputError: no folders, or one that is no class.
    """
    position = {name: row for row, name in enumerate(classes)}
    _refuse(folders, [name for name in folders if name not in position], f"the {len(classes)} class names")
    return np.array([position[name] for name in folders], dtype=np.int64)


def numeric_labels(folders: Sequence[str], num_classes: int = V2_CLASSES) -> NDArray[np.int64]:
    """(F,) int64 of folders named 0, 1, 2 … by their number: sorted as text, 10 would come before 2.

    Raises:
        InputError: no folders, or one that is no class number.
    """
    unknown = [
        name for name in folders if not (name.isascii() and name.isdecimal() and int(name) < num_classes)
    ]
    _refuse(folders, unknown, f"the class numbers 0 to {num_classes - 1}")
    return np.array([int(name) for name in folders], dtype=np.int64)


def _refuse(folders: Sequence[str], unknown: Sequence[str], known: str) -> None:
    if not folders:
        raise InputError("there are no class folders; images lie in <class>/<image>")
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(folders)} class folders, such as {unknown[0]!r}, are not among {known}"
        )


def read_real_labels(path: Path) -> list[tuple[int, ...]]:
    """ReaL's label sets, one an image of the validation set in file order; some are empty.

    The file is `real.json` of google-research/reassessed-imagenet; timm carries it as
    `timm/data/_info/imagenet_real_labels.json`.

    Raises:
        InputError: no such file, or not a list of lists of class numbers.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give ReaL's real.json") from error
    except ValueError as error:  # not JSON, or not text
        raise InputError(f"{path} is not JSON ({error}); give ReaL's real.json") from error
    if not isinstance(found, list) or not found:
        raise InputError(f"{path} holds no list of label lists; give ReaL's real.json")
    for number, labels in enumerate(found, start=1):
        if not isinstance(labels, list) or not all(_is_class(label) for label in labels):
            raise InputError(f"{path}: entry {number} is {labels!r}; a list of classes 0 to 999 is needed")
    return [tuple(labels) for labels in found]


def real_labels_of(files: Sequence[str], labels: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The label set of each validation image by the number in its name, ILSVRC2012_val_00000001 the first.

    Raises:
        InputError: a file that has no such number, or one beyond the labels.
    """
    return [labels[_val_row(name, len(labels))] for name in files]


def _is_class(label: object) -> bool:
    return type(label) is int and 0 <= label < len(imagenet_classes())


def _val_row(name: str, count: int) -> int:
    match = _VAL_NAME.search(name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= count:
        raise InputError(f"{name!r} is not one of ILSVRC2012_val_00000001 to {count:08d}, which ReaL labels")
    return number - 1
