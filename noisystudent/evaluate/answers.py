"""What models did on each image of a test: kept on disk, and of which images it is kept."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisystudent import rundir
from noisystudent.errors import RunError
from noisystudent.runtime import generator

Answers = dict[str, NDArray[np.floating | np.integer | np.bool_]]
"""What one model did, image by image, by name: `clean`, `c/<corruption>/<severity>`, `fgsm/<eps>` and
`pgd/<eps>` (N,) bool, right or not; `p/<perturbation>/flips`, `…/t5d` and `…/zipf` (N,) float32, a sequence;
`calibration/<metric>` () float64."""


def save_answers(path: Path, answers: Answers, about: str) -> None:
    """Write what a model did as .npz, atomically; `about` says to which images and plan it belongs."""
    with rundir.atomic(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **answers, about=np.array(about))  # type: ignore[arg-type]


def load_answers(path: Path, about: str) -> Answers:
    """What `save_answers` wrote of the same images and plan, else nothing; never unpickles.

    Raises:
        RunError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} cannot be read ({error}); delete it and run again") from error
    return found if str(found.pop("about", "")) == about else {}


def stratified(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """At most `count` rows (n,), ascending, of each class as many as its share, drawn by the seed."""
    if count >= len(labels):
        return np.arange(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    share = sizes * count / len(labels)
    taken = np.floor(share).astype(np.int64)
    largest = np.argsort(taken - share, kind="stable")  # remainders, the largest first
    taken[largest[: count - int(taken.sum())]] += 1
    order = generator(seed, "evaluate/sample").permutation(len(labels))
    chosen = [order[labels[order] == label][:n] for label, n in zip(classes, taken, strict=True)]
    return np.sort(np.concatenate(chosen))
