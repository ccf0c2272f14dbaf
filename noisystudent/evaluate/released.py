"""Published and written test sets: ImageNet-C and -P folders, CIFAR-10-C, CIFAR-100-C and CIFAR-10-P arrays.

Images are uint8 on the CPU. Whatever is wrong with a set is said at the call, before the first batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from noisystudent import rundir
from noisystudent.errors import InputError, RunError

Decode = Callable[[Path], Tensor]
"""A file, or a folder of frames, to uint8 pixels."""

Labeled = Iterator[tuple[Tensor, NDArray[np.int64]]]

SEVERITIES = 5


def read_arrays(folder: Path, name: str, severity: int, *, batch_size: int) -> Labeled:
    """One cell of CIFAR-10-C or CIFAR-100-C: a fifth of `<name>.npy`, with `labels.npy`.

    Yields:
        (B, 3, S, S) uint8 and (B,) int64.

    Raises:
        InputError: a file is missing, the arrays are not such a set, or no such severity.
    """
    if not 1 <= severity <= SEVERITIES:
        raise InputError(f"the severity of {name} is {severity}; it is one of 1, 2, 3, 4, 5")
    images, labels = _array(folder / f"{name}.npy"), _array(folder / "labels.npy")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) % SEVERITIES:
        raise InputError(
            f"{folder / name}.npy holds {images.dtype} {images.shape}; uint8 (5 N, S, S, 3) is needed"
        )
    if labels.shape != (len(images),):
        raise InputError(
            f"{folder / 'labels.npy'} holds {labels.shape} labels of {len(images)} images of {name}"
        )
    count = len(images) // SEVERITIES
    first = (severity - 1) * count

    def read() -> Labeled:
        for start in range(first, first + count, batch_size):
            part = slice(start, min(start + batch_size, first + count))
            yield _channels_first(images[part]), np.asarray(labels[part], dtype=np.int64)

    return read()


def read_sequence_arrays(folder: Path, name: str, *, batch_size: int) -> Iterator[Tensor]:
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
    return (_channels_first(frames[at : at + batch_size]) for at in range(0, len(frames), batch_size))


def read_folder(
    root: Path, name: str, severity: int, *, classes: Sequence[str], decode: Decode, batch_size: int
) -> Labeled:
    """One cell of ImageNet-C: `<name>/<severity>/<class>/<image>`, also below a folder of its family.

    Args:
        root: of the set.
        name: of the corruption.
        severity: 1 … 5.
        classes: names of the class folders, in the order of the model's classes.
        decode: an image file to (3, S, S) uint8; the published set is only cropped, never resized.
        batch_size: how many images at a time.

    Yields:
        (B, 3, S, S) uint8 and (B,) int64, by class and file name.

    Raises:
        InputError: the folder is missing, empty, or has a class that is none of `classes`.
    """
    return _read(_find(root, f"{name}/{severity}"), classes, decode, batch_size)


def read_sequence_folder(
    root: Path, name: str, *, classes: Sequence[str], decode: Decode, batch_size: int
) -> Labeled:
    """ImageNet-P: `<name>/<class>/<sequence>`, each a video or a folder of frames.

    Args:
        root: of the set.
        name: of the perturbation.
        classes: names of the class folders, in the order of the model's classes.
        decode: a sequence to (T, 3, S, S) uint8: `read_video`, or `read_frames` with a decoder of images.
        batch_size: how many sequences at a time.

    Yields:
        (B, T, 3, S, S) uint8 and (B,) int64.

    Raises:
        InputError: the folder is missing, empty, or has a class that is none of `classes`.
    """
    return _read(_find(root, name), classes, decode, batch_size)


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


def write_arrays(folder: Path, name: str, images: Iterable[Tensor], labels: NDArray[np.int64]) -> None:
    """Write `<name>.npy` and `labels.npy` as CIFAR-10-C does, whole or not at all.

    Args:
        folder: made if it does not exist.
        name: of the corruption.
        images: batches (B, 3, S, S) uint8: all images at severity 1, then all at 2, up to 5.
        labels: (N,) of the images, once.

    Raises:
        InputError: not five times as many images as labels.
        RunError: the disk is full or cannot be written.
    """
    written = 0
    with rundir.atomic(folder / f"{name}.npy") as partial:
        target: np.memmap[Any, np.dtype[np.uint8]] | None = None
        for part in images:
            pixels = part.permute(0, 2, 3, 1).cpu().numpy()
            if target is None:
                shape = (SEVERITIES * len(labels), *pixels.shape[1:])
                target = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            target[written : written + len(pixels)] = pixels[: len(target) - written]
            written += len(pixels)
        if target is None or written != len(target):
            raise InputError(f"{name}: {written} images for {len(labels)} labels at {SEVERITIES} severities")
        target.flush()
    with rundir.atomic(folder / "labels.npy") as partial, partial.open("wb") as file:
        np.save(file, np.tile(labels, SEVERITIES))


def write_folder(
    root: Path, name: str, severity: int, images: Iterable[Tensor], files: Sequence[str]
) -> None:
    """Write `<name>/<severity>/<class>/<image>.JPEG` of quality 85 as ImageNet-C does, whole or not at all.

    Args:
        root: of the set.
        name: of the corruption.
        severity: 1 … 5.
        images: batches (B, 3, S, S) uint8, not yet saved as JPEG.
        files: `<class>/<image>` of each image, with any ending.

    Raises:
        InputError: a name that leads elsewhere, or not one for each image.
        RunError: the disk is full or cannot be written.
    """
    places = [PurePosixPath(file) for file in files]
    for place in places:
        if place.is_absolute() or ".." in place.parts or len(place.parts) != 2:
            raise InputError(f"{str(place)!r} cannot be written below {root}; it should be <class>/<image>")
    count = 0
    with rundir.atomic(root / name / str(severity)) as partial:
        for part in images:
            for pixels, place in zip(part.permute(0, 2, 3, 1).cpu().numpy(), places[count:], strict=False):
                target = partial / place.with_suffix(".JPEG")
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(target, quality=85, optimize=True)
            count += len(part)
        if count != len(places):
            raise InputError(f"{name}, severity {severity}: {count} images for {len(places)} names")


def _array(path: Path) -> NDArray[np.generic]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as an array: {error}") from error
    return np.asanyarray(found)


def _channels_first(images: NDArray[np.generic]) -> Tensor:
    """(…, S, S, 3) to (…, 3, S, S), copied to memory."""
    return torch.from_numpy(np.array(np.moveaxis(images, -1, -3), order="C"))


def _find(root: Path, within: str) -> Path:
    """The folder `within`, below `root` or one of its folders (noise, blur, weather, digital, extra)."""
    for folder in (root / within, *sorted(root.glob(f"*/{within}"))):
        if folder.is_dir():
            return folder
    raise InputError(f"{root} has no folder {within}, nor has a folder in it; is the test set whole?")


def _read(folder: Path, classes: Sequence[str], decode: Decode, batch_size: int) -> Labeled:
    """Everything in the class folders, decoded, by class and name."""
    numbers = {name: number for number, name in enumerate(classes)}
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    strange = [path.name for path in found if path.name not in numbers]
    if strange:
        raise InputError(
            f"{folder} has the class {strange[0]}, which the model has not; it knows {len(classes)} classes"
        )
    items = [(item, numbers[place.name]) for place in found for item in sorted(place.iterdir())]
    if not items:
        raise InputError(f"{folder} has no images; <class>/<image> is needed")

    def read() -> Labeled:
        for start in range(0, len(items), batch_size):
            part = items[start : start + batch_size]
            yield torch.stack([decode(path) for path, _ in part]), np.array([label for _, label in part])

    return read()


def _number(path: Path) -> tuple[int, str]:
    digits = "".join(letter for letter in path.stem if letter.isdigit())
    return int(digits or 0), path.name
