"""Read published test sets: ImageNet-C and -P folders, CIFAR-10-C, CIFAR-100-C and CIFAR-10-P arrays.

Images are uint8 on the CPU. Whatever is wrong with a set is said at the call, before the first batch.
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
"""A file, or a folder of frames, to uint8 pixels."""

Labeled = Iterator[tuple[Tensor, NDArray[np.int64]]]

Pick = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Labels (N,) of a set to the rows to read, ascending; where nothing is labeled, N zeros."""

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
    """One cell of CIFAR-10-C or CIFAR-100-C: a fifth of `<name>.npy`, with `labels.npy`.

    Args:
        folder: of the set.
        name: of the corruption.
        severity: 1 … 5.
        batch_size: how many images at a time.
        num_classes: of the model: the labels have no names, so that only their number tells another set.
        pick: None reads all.

    Yields:
        (B, 3, S, S) uint8 and (B,) int64.

    Raises:
        InputError: a file is missing, the arrays are not such a set or of other classes, or no such severity.
    """
    if not 1 <= severity <= SEVERITIES:
        raise InputError(f"the severity of {name} is {severity}; it is one of 1, 2, 3, 4, 5")
    images, labels = _array(folder / f"{name}.npy"), _array(folder / "labels.npy")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) % SEVERITIES:
        raise InputError(
            f"{folder / name}.npy holds {images.dtype} {images.shape}; uint8 (5 N, S, S, 3) is needed"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{folder / 'labels.npy'} holds {labels.dtype} {labels.shape}; {len(images)} integers"
            f" for the images of {name} are needed"
        )
    count = len(images) // SEVERITIES
    first = (severity - 1) * count
    own = np.asarray(labels[first : first + count], dtype=np.int64)
    low, high = labels.min(), labels.max()
    if num_classes is not None and (low != 0 or high + 1 != num_classes):
        raise InputError(f"{folder / 'labels.npy'} has classes {low} to {high}; the model has {num_classes}")
    rows = np.arange(count) if pick is None else pick(own)
    return ((_channels_first(images[first + part]), own[part]) for part in _parts(rows, batch_size))


def read_sequence_arrays(
    folder: Path, name: str, *, batch_size: int, pick: Pick | None = None
) -> Iterator[Tensor]:
    """CIFAR-10-P: `<name>.npy` of (N, T, S, S, 3), in the order of CIFAR-10's test set.

    Yields:
        (B, T, 3, S, S) uint8.

    Raises:
        InputError: the file is missing or is something else.
    """
    frames = _array(folder / f"{name}.npy")
    if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[4] != 3:
        raise InputError(
            f"{folder / name}.npy holds {frames.dtype} {frames.shape}; uint8 (N, T, S, S, 3) is needed"
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
    """One cell of ImageNet-C: `<name>/<severity>/<class>/<image>`, also below a folder of its family.

    Args:
        root: of the set.
        name: of the corruption.
        severity: 1 … 5.
        classes: names of the class folders, in the order of the model's classes.
        decode: an image file to (3, S, S) uint8; the published set is only cropped, never resized.
        batch_size: how many images at a time.
        pick: None reads all.

    Yields:
        (B, 3, S, S) uint8 and (B,) int64, by class and file name.

    Raises:
        InputError: the folder is missing, empty, or has a class that is none of `classes`.
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
    """ImageNet-P: `<name>/<class>/<sequence>`, each a video or a folder of frames.

    Args:
        root: of the set.
        name: of the perturbation.
        classes: names of the class folders, in the order of the model's classes.
        decode: a sequence to (T, 3, S, S) uint8: `read_video`, or `read_frames` with a decoder of images.
        batch_size: how many sequences at a time.
        pick: None reads all.

    Yields:
        (B, T, 3, S, S) uint8 and (B,) int64.

    Raises:
        InputError: the folder is missing, empty, or has a class that is none of `classes`.
    """
    return _read(find(root, name), classes, decode, batch_size, pick)


def read_video(path: Path) -> Tensor:
    """All frames (T, 3, H, W) uint8 of a video, as ImageNet-P publishes its sequences (H.264, lossy).

    Raises:
        RunError: it cannot be decoded.
    """
    import cv2

    video = cv2.VideoCapture(str(path))
    frames: list[NDArray[np.uint8]] = []
    try:
        while (found := video.read())[0]:
            frames.append(np.asarray(found[1][..., ::-1], dtype=np.uint8))  # OpenCV's channels are BGR
    finally:
        video.release()
    if not frames:
        raise RunError(f"{path} cannot be read as a video; is it whole?")
    return _channels_first(np.stack(frames))


def read_frames(folder: Path, decode: Decode) -> Tensor:
    """All frames (T, 3, S, S) uint8 of a folder, in the order of the numbers in their names.

    Raises:
        InputError: no frames.
    """
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=_number)
    if not files:
        raise InputError(f"{folder} has no frames; a sequence is a folder of images")
    return torch.stack([decode(path) for path in files])


def _array(path: Path) -> NDArray[np.generic]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as an array: {error}") from error
    return np.asanyarray(found)


def _channels_first(images: NDArray[np.generic]) -> Tensor:
    """(…, S, S, 3) to (…, 3, S, S), copied to memory."""
    return torch.from_numpy(np.array(np.moveaxis(images, -1, -3), order="C"))


def dimensions(path: Path) -> int | None:
    """Of the array in a .npy file; None if it cannot be read."""
    try:
        return _array(path).ndim
    except InputError:
        return None


def find(root: Path, within: str) -> Path:
    """The folder `within`, below `root` or one of its folders (noise, blur, weather, digital, extra).

    Raises:
        InputError: there is none.
    """
    for folder in (root / within, *sorted(root.glob(f"*/{within}"))):
        if folder.is_dir():
            return folder
    raise InputError(f"{root} has no folder {within}, nor has a folder in it; is the test set whole?")


def _read(
    folder: Path, classes: Sequence[str], decode: Decode, batch_size: int, pick: Pick | None
) -> Labeled:
    """Everything in the class folders, decoded, by class and name."""
    numbers = {name: number for number, name in enumerate(classes)}
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    strange = [path.name for path in found if path.name not in numbers]
    if strange:
        raise InputError(
            f"{folder} has the class {strange[0]}, which the model has not; it knows {len(classes)} classes"
        )
    items = [
        (item, numbers[place.name])
        for place in found
        for item in sorted(place.iterdir())
        if item.name[0] != "."
    ]
    if not items:
        raise InputError(f"{folder} has no images; <class>/<image> is needed")
    labels = np.array([label for _, label in items], dtype=np.int64)
    rows = np.arange(len(items)) if pick is None else pick(labels)
    return (
        (torch.stack([decode(items[row][0]) for row in part]), labels[part])
        for part in _parts(rows, batch_size)
    )


def _parts(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _number(path: Path) -> tuple[int, str]:
    digits = "".join(letter for letter in path.stem if letter.isdigit())
    return int(digits or 0), path.name
