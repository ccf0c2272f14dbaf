"""Classes and labels of the test sets ImageNet-A, -R, V2, Sketch and ReaL."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError
from noisystudent.robustness import tables

Logits = TypeVar("Logits", Tensor, NDArray[np.floating[Any]])

V2_CLASSES = 1000

_SUBSETS = {"a": "ImageNet-A", "r": "ImageNet-R"}
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\b")


@dataclass(frozen=True, slots=True)
class Subset:
    """A subset of ImageNet's classes, for a test set whose predictions are limited to these classes.

    Attributes:
        name: name of the test set, for messages.
        wnids: WordNet ids of the classes, which name the class folders, in the order of the kept logits.
        classes: positions of the classes among the 1000 logits, ascending.
    """

    name: str
    wnids: tuple[str, ...]
    classes: tuple[int, ...]


@cache
def imagenet_classes() -> tuple[str, ...]:
    """WordNet ids of ImageNet's 1000 classes, in the order of a model's logits."""
    return tuple(tables.read_text("imagenet_wnids.txt").split())


@cache
def subset(test: str) -> Subset:
    """The 200 classes of ImageNet-A (`a`) or ImageNet-R (`r`).

    Raises:
        InputError: any other name.
    """
    if test not in _SUBSETS:
        raise InputError(f"{test!r} has no class subset; choose one of a (ImageNet-A), r (ImageNet-R)")
    wnids = tuple(tables.read_text(f"imagenet_{test}_wnids.txt").split())
    position = {wnid: row for row, wnid in enumerate(imagenet_classes())}
    return Subset(_SUBSETS[test], wnids, tuple(position[wnid] for wnid in wnids))


def restrict(logits: Logits, kept: Subset) -> Logits:
    """(N, 1000) logits -> (N, C) logits of the kept classes.

    Use it before argmax or softmax, so that the other classes take no part in the prediction.

    Raises:
        InputError: the logits are not those of ImageNet's 1000 classes.
    """
    if logits.ndim != 2 or logits.shape[1] != len(imagenet_classes()):
        raise InputError(
            f"logits have shape {tuple(logits.shape)}; {kept.name} needs a model of ImageNet's 1000 classes"
        )
    if isinstance(logits, Tensor):
        return logits.index_select(1, _positions(kept, logits.device))
    return logits[:, list(kept.classes)]


@cache
def _positions(kept: Subset, device: torch.device) -> Tensor:
    """(C,) int64 positions of the kept classes, on the device. To copy them for every batch would wait."""
    with torch.inference_mode(False):  # kept for callers that need gradients
        return torch.tensor(kept.classes, device=device)


def subset_labels(labels: NDArray[np.integer[Any]], kept: Subset) -> NDArray[np.int64]:
    """(N,) labels among the 1000 classes -> (N,) int64 positions among the kept classes, -1 for all others.

    It selects the clean images of the same classes, so that the accuracy gap between the two sets is not
    caused by different classes.
    """
    position = np.full(len(imagenet_classes()), -1, dtype=np.int64)
    position[list(kept.classes)] = np.arange(len(kept.classes))
    return np.asarray(position[labels])


def imagenet_labels(test: str, folders: Sequence[str]) -> NDArray[np.int64]:
    """Label of each class folder of an ImageNet test: in 0 … 199 for `a` and `r`, otherwise in 0 … 999.

    Args:
        test: name of the test. The folders of `v2` are class numbers; those of all others are WordNet ids.
        folders: names of the class folders, in any order.

    Returns:
        (F,) int64.

    Raises:
        InputError: a folder is not a class of that test.
    """
    if test == "v2":
        return numeric_labels(folders)
    return folder_labels(folders, subset(test).wnids if test in _SUBSETS else imagenet_classes())


def folder_labels(folders: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """(F,) int64 position of each folder's name among the model's classes.

    A class without a folder is not an error: it has no images.

    Raises:
        InputError: no folders, or a folder that is not a class.
    """
    position = {name: row for row, name in enumerate(classes)}
    _refuse(folders, [name for name in folders if name not in position], f"the {len(classes)} class names")
    return np.array([position[name] for name in folders], dtype=np.int64)


def numeric_labels(folders: Sequence[str], num_classes: int = V2_CLASSES) -> NDArray[np.int64]:
    """(F,) int64 labels of folders named 0, 1, 2 …, read as numbers.

    The position in a sorted list of names would be wrong: sorted as text, 10 comes before 2.

    Raises:
        InputError: no folders, or a folder that is not a class number.
    """
    unknown = [
        name for name in folders if not (name.isascii() and name.isdecimal() and int(name) < num_classes)
    ]
    _refuse(folders, unknown, f"the class numbers 0 to {num_classes - 1}")
    return np.array([int(name) for name in folders], dtype=np.int64)


def _refuse(folders: Sequence[str], unknown: Sequence[str], known: str) -> None:
    if not folders:
        raise InputError("there are no class folders; images must be in <class>/<image>")
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(folders)} class folders, such as {unknown[0]!r}, are not among {known}"
        )


def read_real_labels(path: Path) -> list[tuple[int, ...]]:
    """ReaL's label sets, one for each image of the validation set in file order; some are empty.

    The file is `real.json` of google-research/reassessed-imagenet; timm contains it as
    `timm/data/_info/imagenet_real_labels.json`.

    Raises:
        InputError: no such file, or not a list of lists of class numbers.
    """
    try:
        label_sets = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give ReaL's real.json") from error
    except ValueError as error:  # not JSON, or not text
        raise InputError(f"{path} is not JSON ({error}); give ReaL's real.json") from error
    if not isinstance(label_sets, list) or not label_sets:
        raise InputError(f"{path} holds no list of label lists; give ReaL's real.json")
    for number, labels in enumerate(label_sets, start=1):
        if not isinstance(labels, list) or not all(_is_class(label) for label in labels):
            raise InputError(f"{path}: entry {number} is {labels!r}; it must be a list of classes 0 to 999")
    return [tuple(labels) for labels in label_sets]


def real_labels_of(files: Sequence[str], labels: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The label set of each validation image, looked up by the number in its file name.

    ILSVRC2012_val_00000001 has the first label set.

    Raises:
        InputError: a file name without such a number, or with one above the number of label sets.
    """
    return [labels[_val_row(name, len(labels))] for name in files]


def _is_class(label: object) -> bool:
    # isinstance would accept True and False, which are integers in Python.
    return type(label) is int and 0 <= label < len(imagenet_classes())


def _val_row(name: str, count: int) -> int:
    match = _VAL_NAME.search(name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= count:
        raise InputError(
            f"{name!r} has no ReaL labels; the file name must be ILSVRC2012_val_00000001 to {count:08d}"
        )
    return number - 1
