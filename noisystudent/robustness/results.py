"""Results of a model for each test image: the format on disk, and the choice of a stratified sample."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisystudent.errors import RunError, first_line
from noisystudent.run import files
from noisystudent.runtime import generator

Results = dict[str, NDArray[np.floating | np.integer | np.bool_]]
"""Results of one model. The keys are:

`clean`, `c/<corruption>/<severity>`, `fgsm/<eps>`, `pgd/<eps>`: (N,) bool, True if the prediction is right;
`p/<perturbation>/flips`, `p/<perturbation>/t5d`, `p/<perturbation>/zipf`: (N,) float32, one per sequence;
`calibration/<metric>`: () float64. `c-extra` and `p-extra` have the same form as `c` and `p`."""


def save_results(path: Path, results: Results, about: str) -> None:
    """Write results as .npz, atomically.

    Args:
        path: the file.
        results: results of one model.
        about: identifies the images and the plan that the results belong to; `load_results` compares it.
    """
    with files.atomic(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **results, about=np.array(about))  # type: ignore[arg-type]


def load_results(path: Path, about: str) -> Results:
    """Results that `save_results` wrote with the same `about`, otherwise an empty dict.

    A file of other images or of another plan is not an error: its results are computed again. No pickled code
    is read.

    Raises:
        RunError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            results = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} cannot be read ({first_line(error)})") from error
    return results if str(results.pop("about", "")) == about else {}


def stratified(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """A stratified sample: at most `count` rows (n,), ascending, each class in proportion to its size.

    The rows are drawn with `seed`.
    """
    if count >= len(labels):
        return np.arange(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    share = sizes * count / len(labels)
    taken = np.floor(share).astype(np.int64)
    # Rounding down leaves some of the `count` rows: the classes with the largest remainders get one more.
    largest = np.argsort(taken - share, kind="stable")
    taken[largest[: count - int(taken.sum())]] += 1
    order = generator(seed, "evaluate/sample").permutation(len(labels))
    chosen = [order[labels[order] == label][:n] for label, n in zip(classes, taken, strict=True)]
    return np.sort(np.concatenate(chosen))
