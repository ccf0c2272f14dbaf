"""Corrupted copies on disk, in the layouts of the published sets, with a note of what they are."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent import rundir
from noisystudent.data.imageset import ImageSet
from noisystudent.errors import InputError
from noisystudent.evaluate import writing
from noisystudent.evaluate.pictures import Pictures
from noisystudent.evaluate.released import SEVERITIES
from noisystudent.runtime import StopFlag, Voice

_NOTE = "about.json"
_LARGE = 224


def as_folder(side: int) -> bool:
    """Whether copies of this side are JPEG files in folders, as ImageNet-C; else lossless arrays."""
    return side >= _LARGE


def note_of(folder: Path) -> dict[str, Any] | None:
    """What `write` said of the copies in `folder`; None where it did not write them."""
    path = folder / _NOTE
    return dict(rundir.read_json(path)) if path.is_file() else None


def write(
    made: Pictures,
    images: ImageSet,
    rows: NDArray[np.int64],
    folder: Path,
    about: Mapping[str, Any],
    classes: Sequence[str],
    stop: StopFlag,
    voice: Voice,
) -> None:
    """Write every corruption at every severity; what a stopped call wrote is not made again.

    Args:
        made: gives the copies, in the order of `rows`.
        images: the originals.
        rows: (N,) of them.
        folder: is made where it does not exist.
        about: `side` in pixels, and what else decides the copies.
        classes: names of the labels.
        stop: asked before each batch.
        voice: told how many corruptions are done.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    digest = hashlib.blake2b(images.content_hash[rows].tobytes(), digest_size=16).hexdigest()
    _claim(folder, {**about, "classes": list(classes), "images": digest})
    labels = images.labels[rows]
    files = _files(images.ids(rows), [classes[label] for label in labels])

    def pixels(name: str, *severities: int) -> Iterator[Tensor]:
        for severity in severities:
            for batch, _ in made.corrupted(name, severity):
                stop.check()
                yield batch

    every = range(1, SEVERITIES + 1)
    for done, name in enumerate(made.corruptions):
        voice.progress("writing", done, len(made.corruptions))
        if not as_folder(about["side"]):
            if not (folder / f"{name}.npy").is_file():
                writing.write_arrays(folder, name, pixels(name, *every), labels)
            continue
        for severity in every:
            if not (folder / name / str(severity)).is_dir():
                writing.write_folder(folder, name, severity, pixels(name, severity), files)


def _claim(folder: Path, note: dict[str, Any]) -> None:
    """Say in `folder` whose copies it holds, so that those of two sets or seeds never meet."""
    found = note_of(folder)
    if found is not None and found != note:
        raise InputError(f"--write {folder} holds copies of other images or options; choose a new folder")
    if found is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--write {folder} holds something else; choose a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--write {folder} cannot be written: {error.strerror}") from error
    rundir.write_json(folder / _NOTE, note)


def _files(ids: Sequence[str], classes: Sequence[str]) -> list[str]:
    """`<class>/<image>` of each; numbered where two would have one name."""
    names = [f"{label}/{PurePosixPath(one).stem}" for one, label in zip(ids, classes, strict=True)]
    twice = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name}-{row:06d}.JPEG" if name in twice else f"{name}.JPEG" for row, name in enumerate(names)]
