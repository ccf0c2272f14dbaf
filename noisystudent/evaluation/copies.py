"""Write corrupted images to disk in the layouts of the published sets, with a note that describes them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.errors import InputError
from noisystudent.robustness.images import SuiteImages
from noisystudent.robustness.released import SEVERITIES
from noisystudent.run.files import atomic, new_array, read_json, write_json

_NOTE = "about.json"
_LARGE = 224  # side in pixels from which ImageNet-C's layout is used


def as_folder(side: int) -> bool:
    """True if images of this side are written as JPEG files (ImageNet-C's layout), otherwise as arrays."""
    return side >= _LARGE


def note_of(folder: Path) -> dict[str, Any] | None:
    """The note that `write` left in `folder`; None if the images were not written by this package."""
    path = folder / _NOTE
    return dict(read_json(path)) if path.is_file() else None


def write(
    made: SuiteImages,
    images: ImageSet,
    rows: NDArray[np.int64],
    folder: Path,
    *,
    about: Mapping[str, Any],
    classes: Sequence[str],
    progress: Progress,
) -> None:
    """Write every corruption at every severity, except for those that an earlier, stopped call wrote.

    Args:
        made: generates the corrupted images, in the order of `rows`.
        images: the original images.
        rows: (N,) rows of `images` to write.
        folder: folder to write to; created if it does not exist.
        about: `side` in pixels, and everything else that the corrupted images depend on.
        classes: names of the classes.
        progress: shows the number of corruptions; a signal stops the work between two batches.

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
                progress.check()
                yield batch

    severities = range(1, SEVERITIES + 1)
    for done, name in enumerate(made.corruptions):
        progress.advance("writing", done, len(made.corruptions))
        if not as_folder(about["side"]):
            if not (folder / f"{name}.npy").is_file():
                write_arrays(folder, name, pixels(name, *severities), labels)
            continue
        for severity in severities:
            if not (folder / name / str(severity)).is_dir():
                write_folder(folder, name, severity, pixels(name, severity), files)


def _claim(folder: Path, note: dict[str, Any]) -> None:
    """Write the note into `folder`, so that images of two sets or seeds are never mixed in one folder."""
    existing = note_of(folder)
    if existing is not None and existing != note:
        raise InputError(
            f"--write {folder} holds corrupted images of other originals or options; choose a new folder"
        )
    if existing is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--write {folder} holds something else; choose a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--write {folder} cannot be written: {error.strerror}") from error
    write_json(folder / _NOTE, note)


def _files(ids: Sequence[str], classes: Sequence[str]) -> list[str]:
    """File name `<class>/<image>.JPEG` of each image; with a number if several images have the same name."""
    names = [f"{label}/{PurePosixPath(one).stem}" for one, label in zip(ids, classes, strict=True)]
    twice = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name}-{row:06d}.JPEG" if name in twice else f"{name}.JPEG" for row, name in enumerate(names)]


def write_arrays(folder: Path, name: str, images: Iterable[Tensor], labels: NDArray[np.int64]) -> None:
    """Write `<name>.npy` and `labels.npy` in the layout of CIFAR-10-C, atomically.

    Args:
        folder: folder of the set; created if it does not exist.
        name: name of the corruption.
        images: batches (B, 3, S, S) uint8: all images at severity 1, then all at severity 2, up to 5.
        labels: (N,) labels of the images, for one severity.

    Raises:
        InputError: the number of images is not five times the number of labels.
        RunError: the disk is full or cannot be written.
    """
    written = 0
    with atomic(folder / f"{name}.npy") as partial:
        target: np.memmap[Any, np.dtype[np.uint8]] | None = None
        for part in images:
            pixels = part.permute(0, 2, 3, 1).cpu().numpy()
            if target is None:
                # Memory-mapped: the array of all severities may be larger than the memory.
                shape = (SEVERITIES * len(labels), *pixels.shape[1:])
                target = new_array(partial, np.uint8, shape)
            target[written : written + len(pixels)] = pixels[: len(target) - written]
            written += len(pixels)
        if target is None or written != len(target):
            raise InputError(
                f"{name}: there are {written} images for {len(labels)} labels at {SEVERITIES} severities;"
                f" there must be {SEVERITIES * len(labels)}"
            )
        target.flush()
    with atomic(folder / "labels.npy") as partial, partial.open("wb") as file:
        np.save(file, np.tile(labels, SEVERITIES))


def write_folder(
    root: Path, name: str, severity: int, images: Iterable[Tensor], files: Sequence[str]
) -> None:
    """Write `<name>/<severity>/<class>/<image>.JPEG` of quality 85 in the layout of ImageNet-C, atomically.

    Args:
        root: folder of the set.
        name: name of the corruption.
        severity: 1 … 5.
        images: batches (B, 3, S, S) uint8, not yet saved as JPEG.
        files: `<class>/<image>` of each image, with any suffix.

    Raises:
        InputError: a name that is not `<class>/<image>`, two equal names, or not one name for each image.
        RunError: the disk is full or cannot be written.
    """
    paths = [PurePosixPath(file) for file in files]
    for path in paths:
        if path.is_absolute() or ".." in path.parts or len(path.parts) != 2:
            raise InputError(f"{str(path)!r} cannot be written below {root}; it must be <class>/<image>")
    # All suffixes become .JPEG, so names that differ only in the suffix would overwrite each other.
    if len({path.with_suffix("") for path in paths}) < len(paths):
        raise InputError(
            f"{name}, severity {severity}: two images have the same name; names must differ before the suffix"
        )
    count = 0
    with atomic(root / name / str(severity)) as partial:
        for part in images:
            for pixels, path in zip(part.permute(0, 2, 3, 1).cpu().numpy(), paths[count:], strict=False):
                target = partial / path.with_suffix(".JPEG")
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(target, quality=85, optimize=True)
            count += len(part)
        if count != len(paths):
            raise InputError(
                f"{name}, severity {severity}: there are {count} images for {len(paths)} names;"
                " give one name for each"
            )
