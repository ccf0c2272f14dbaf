"""Read published test sets: ImageNet-C and -P folders, CIFAR-10-C, CIFAR-100-C and CIFAR-10-P arrays.

Images are uint8 on the CPU. The readers are not generator functions: they check the set and raise an error
when they are called, not when the first batch is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError, RunError

Decode = Callable[[Path], Tensor]
"""Path of a file or of a folder of frames -> uint8 pixels."""

Labeled = Iterator[tuple[Tensor, NDArray[np.int64]]]

Pick = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Labels (N,) of a set -> the rows to read, ascending. For a set without labels it is called with N zeros."""

SEVERITIES = 5


def read_arrays(
    folder: Path,
    name: str,
    severity: int,
    *,
    batch_size: int,
    num_classes: int | None = None,
    pick: Pick | None = None,
) -> Labeled:
    """One corruption at one severity of CIFAR-10-C or CIFAR-100-C, from `<name>.npy` and `labels.npy`.

    `<name>.npy` holds all images at severity 1, then all at severity 2, up to 5.

    Args:
        folder: folder of the set.
        name: name of the corruption.
        severity: 1 … 5.
        batch_size: images per batch.
        num_classes: number of classes the set must have, as its labels have no names; None: no check.
        pick: selects the rows to read; None: all.

    Yields:
        (B, 3, S, S) uint8 and (B,) int64.

    Raises:
        InputError: a file is missing, the arrays are not such a set or have other classes, or the severity
            is not in 1 … 5.
    """
    if not 1 <= severity <= SEVERITIES:
        raise InputError(f"the severity of {name} is {severity}; choose one of 1, 2, 3, 4, 5")
    images, labels = _array(folder / f"{name}.npy"), _array(folder / "labels.npy")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) % SEVERITIES:
        raise InputError(
            f"{folder / name}.npy holds {images.dtype} {images.shape}; it must be uint8 (5 N, S, S, 3)"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{folder / 'labels.npy'} holds {labels.dtype} {labels.shape}; it must hold {len(images)}"
            f" integers, one for each image of {name}"
        )
    count = len(images) // SEVERITIES
    first = (severity - 1) * count
    cell_labels = np.asarray(labels[first : first + count], dtype=np.int64)
    low, high = int(labels.min()), int(labels.max())
    if num_classes is not None and (low != 0 or high + 1 != num_classes):
        raise InputError(
            f"{folder / 'labels.npy'} has classes {low} to {high}; the model has {num_classes} classes"
        )
    rows = np.arange(count) if pick is None else pick(cell_labels)
    return ((_channels_first(images[first + part]), cell_labels[part]) for part in _parts(rows, batch_size))


def read_sequence_arrays(
    folder: Path, name: str, *, batch_size: int, pick: Pick | None = None
) -> Iterator[Tensor]:
    """The sequences of one perturbation of CIFAR-10-P, from `<name>.npy` of shape (N, T, S, S, 3).

    They are in the order of CIFAR-10's test set.

    Yields:
        (B, T, 3, S, S) uint8.

    Raises:
        InputError: the file is missing or is not such an array.
    """
    frames = _array(folder / f"{name}.npy")
    if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[4] != 3:
        raise InputError(
            f"{folder / name}.npy holds {frames.dtype} {frames.shape}; it must be uint8 (N, T, S, S, 3)"
        )
    rows = np.arange(len(frames)) if pick is None else pick(np.zeros(len(frames), np.int64))
    return (_channels_first(frames[part]) for part in _parts(rows, batch_size))


def read_folder(
    root: Path,
    name: str,
    severity: int,
    *,
    classes: Sequence[str],
    decode: Decode,
    batch_size: int,
    pick: Pick | None = None,
) -> Labeled:
    """One corruption at one severity of ImageNet-C, from `<name>/<severity>/<class>/<image>`.

    The folder `<name>` may also be in a subfolder of `root`, such as `noise` or `blur`.

    Args:
        root: folder of the set.
        name: name of the corruption.
        severity: 1 … 5.
        classes: names of the class folders, in the order of the model's classes.
        decode: an image file -> (3, S, S) uint8; the published set is only cropped, never resized.
        batch_size: images per batch.
        pick: selects the rows to read; None: all.

    Yields:
        (B, 3, S, S) uint8 and (B,) int64, sorted by class and file name.

    Raises:
        InputError: the folder is missing or empty, or has a class that is not in `classes`.
    """
    return _read(find(root, f"{name}/{severity}"), classes, decode, batch_size, pick)


def read_sequence_folder(
    root: Path,
    name: str,
    *,
    classes: Sequence[str],
    decode: Decode,
    batch_size: int,
    pick: Pick | None = None,
) -> Labeled:
    """The sequences of one perturbation of ImageNet-P, from `<name>/<class>/<sequence>`.

    A sequence is a video file or a folder of frames.

    Args:
        root: folder of the set.
        name: name of the perturbation.
        classes: names of the class folders, in the order of the model's classes.
        decode: a sequence -> (T, 3, S, S) uint8: `read_video`, or `read_frames` with a decoder of images.
        batch_size: sequences per batch.
        pick: selects the rows to read; None: all.

    Yields:
        (B, T, 3, S, S) uint8 and (B,) int64.

    Raises:
        InputError: the folder is missing or empty, or has a class that is not in `classes`.
    """
    return _read(find(root, name), classes, decode, batch_size, pick)


def read_video(path: Path) -> Tensor:
    """All frames (T, 3, H, W) uint8 of a video. ImageNet-P publishes its sequences as videos (H.264, lossy).

    Raises:
        RunError: the file cannot be decoded.
    """
    import cv2

    video = cv2.VideoCapture(str(path))
    frames: list[NDArray[np.uint8]] = []
    try:
        while (frame := video.read())[0]:
            frames.append(np.asarray(frame[1][..., ::-1], dtype=np.uint8))  # OpenCV's channels are BGR
    finally:
        video.release()
    if not frames:
        raise RunError(f"{path} cannot be read as a video; copy it again from the published set")
    return _channels_first(np.stack(frames))


def read_frames(folder: Path, decode: Decode) -> Tensor:
    """All frames (T, 3, S, S) uint8 of a folder, sorted by the number in their file names.

    Raises:
        InputError: no frames.
    """
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=_number)
    if not files:
        raise InputError(f"{folder} has no frames; a sequence must be a folder of images")
    return torch.stack([decode(path) for path in files])


def _array(path: Path) -> NDArray[np.generic]:
    """The array of a .npy file, memory-mapped: the published arrays are larger than needed at a time."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as an array: {error}") from error
    return np.asanyarray(array)


def _channels_first(images: NDArray[np.generic]) -> Tensor:
    """(…, S, S, 3) -> (…, 3, S, S), copied to memory."""
    return torch.from_numpy(np.array(np.moveaxis(images, -1, -3), order="C"))


def dimensions(path: Path) -> int | None:
    """Number of dimensions of the array in a .npy file; None if it cannot be read."""
    try:
        return _array(path).ndim
    except InputError:
        return None


def find(root: Path, within: str) -> Path:
    """The folder `within`, in `root` or in one of its folders (noise, blur, weather, digital, extra).

    Raises:
        InputError: there is no such folder.
    """
    for folder in (root / within, *sorted(root.glob(f"*/{within}"))):
        if folder.is_dir():
            return folder
    raise InputError(
        f"{root} has no folder {within}, directly or one folder below; is the test set complete?"
    )


def _read(
    folder: Path, classes: Sequence[str], decode: Decode, batch_size: int, pick: Pick | None
) -> Labeled:
    """All images or sequences of the class folders, decoded, sorted by class and name."""
    numbers = {name: number for number, name in enumerate(classes)}
    class_folders = sorted(path for path in folder.iterdir() if path.is_dir())
    unknown = [path.name for path in class_folders if path.name not in numbers]
    if unknown:
        raise InputError(
            f"{folder} has the class {unknown[0]}, which is not one of the model's {len(classes)} classes"
        )
    items = [
        (item, numbers[class_folder.name])
        for class_folder in class_folders
        for item in sorted(class_folder.iterdir())
        if item.name[0] != "."
    ]
    if not items:
        raise InputError(f"{folder} has no images; they must be in <class>/<image>")
    labels = np.array([label for _, label in items], dtype=np.int64)
    rows = np.arange(len(items)) if pick is None else pick(labels)
    return (
        (torch.stack([decode(items[row][0]) for row in part]), labels[part])
        for part in _parts(rows, batch_size)
    )


def _parts(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _number(path: Path) -> tuple[int, str]:
    """Sort key: the number in a file name, then the name, so that frame10 comes after frame2."""
    digits = "".join(letter for letter in path.stem if letter.isdigit())
    return int(digits or 0), path.name
