"""Published corrupted and perturbed sets on disk, read and resized for a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from noisystudent.config import DataConfig
from noisystudent.data.decode import DecodeError, decode, view
from noisystudent.errors import InputError, RunError
from noisystudent.evaluation import copies
from noisystudent.inference.images import Labeled
from noisystudent.inference.predictor import Predictor
from noisystudent.robustness import released
from noisystudent.robustness.images import LabeledBatch, SuiteImages
from noisystudent.robustness.measures import CORRUPTIONS, PERTURBATIONS

_BATCH, _SEQUENCES = 128, 8
_WHOLE = np.array([0.0, 0.0, 1.0, 1.0], np.float32)  # crop window of `view`: the whole image
_FOLDERS = {"c": ("imagenet-c", "cifar-10-c", "cifar-100-c"), "p": ("imagenet-p", "cifar-10-p")}
_FAMILIES = ("noise", "blur", "weather", "digital", "extra")
_FIRST = "gaussian_noise"  # in every set; its subfolders are severities in ImageNet-C, classes in ImageNet-P


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """A published set of corrupted or perturbed images, or one that `copies.write` wrote.

    Attributes:
        root: folder of the set.
        arrays: True for CIFAR's layout, False for ImageNet's.
        predictor: the model that the images are resized for.
        pick: selects the rows to read of each part; None: all.
    """

    root: Path
    arrays: bool
    predictor: Predictor
    pick: released.Pick | None = None
    _counts: set[int] = field(default_factory=set, init=False, repr=False)

    @property
    def note(self) -> str:
        """Origin of the images, for the results."""
        origin = "the published images" if self.regenerated is None else "ImageNet-C protocol, regenerated,"
        return f"{origin} in {self.root}" + ("" if self.pick is None else ", a stratified sample")

    @property
    def regenerated(self) -> dict[str, Any] | None:
        """The note of images that this package generated and wrote; None: the published images."""
        return copies.note_of(self.root)

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Corruptions in the set; generated images lack frost if there were no photographs."""
        note = self.regenerated
        return CORRUPTIONS if note is None else tuple(note["corruptions"])

    def check(self, test: str, severities: Iterable[int]) -> None:
        """Check that the set is complete for this test, before hours are spent on its first parts.

        Raises:
            InputError: a file or folder is missing or has the wrong content.
        """
        note = self.regenerated
        if note is not None and tuple(note["classes"]) != self.predictor.classes:
            raise InputError(
                f"{self.root} was written for other classes than the model's; choose another folder"
            )
        for name in self.corruptions if test == "c" else PERTURBATIONS:
            for severity in severities if test == "c" else (0,):
                if self.arrays:
                    # The readers check the arrays when they are called; no image is read.
                    _ = self._cell(name, severity) if test == "c" else self._frames(name)
                else:
                    released.find(self.root, f"{name}/{severity}" if test == "c" else name)

    def side(self, test: str) -> int:
        """Side in pixels of the images on disk, read from the first one."""
        images = next(self._cell(_FIRST, 1, 1))[0] if test == "c" else next(self._frames(_FIRST, 1))
        return int(images.shape[-1])

    def corrupted(self, name: str, severity: int) -> Iterator[LabeledBatch]:
        """Images of one corruption at one severity, at the model's resolution.

        Raises:
            InputError: as in `released`, or the number of images differs from the parts read before.
        """
        count = 0
        for images, labels in self._cell(name, severity):
            yield fit(images, self.predictor), labels
            count += len(labels)
        self._counts.add(count)
        if len(self._counts) > 1:
            raise InputError(
                f"{self.root}: {name} of severity {severity} has {count:,} images, others have"
                f" {min(self._counts - {count}):,}; is the test set complete?"
            )

    def perturbed(self, name: str) -> Iterator[Tensor]:
        """Sequences of one perturbation (B, T, 3, S, S), eight at a time, at the model's resolution."""
        for frames in self._frames(name):
            yield fit(frames.flatten(0, 1), self.predictor).unflatten(0, frames.shape[:2])

    def _cell(self, name: str, severity: int, size: int = _BATCH) -> Iterator[LabeledBatch]:
        """Images of one corruption at one severity, as on disk."""
        model = self.predictor
        if self.arrays:
            # The note of regenerated images has the class names; `check` compares them with the model's.
            classes = model.num_classes if self.regenerated is None else None
            return released.read_arrays(
                self.root, name, severity, batch_size=size, num_classes=classes, pick=self.pick
            )
        return released.read_folder(
            self.root,
            name,
            severity,
            classes=model.classes,
            decode=_decoded,
            batch_size=size,
            pick=self.pick,
        )

    def _frames(self, name: str, size: int = _SEQUENCES) -> Iterator[Tensor]:
        """Sequences of one perturbation, as on disk."""
        if self.arrays:
            return released.read_sequence_arrays(self.root, name, batch_size=size, pick=self.pick)
        sequences = released.read_sequence_folder(
            self.root,
            name,
            classes=self.predictor.classes,
            decode=_sequence,
            batch_size=size,
            pick=self.pick,
        )
        return (frames for frames, _ in sequences)


def fit(images: Tensor, predictor: Predictor) -> Tensor:
    """Images (B, 3, S, S) uint8, resized to the model's resolution, on its device.

    The resizing is bicubic and without a crop: the published images are cropped already.
    """
    side = predictor.resolution
    if images.shape[-1] != side:
        resize = partial(functional.interpolate, size=(side, side), mode="bicubic", antialias=True)
        # On a GPU PyTorch implements it only for floating point.
        images = resize(images.float()).round().clamp(0, 255).byte() if images.is_cuda else resize(images)
    return images.to(predictor.device)


def find(data: Labeled, predictor: Predictor, pick: released.Pick | None) -> dict[str, PublishedSet]:
    """Published sets in `data`: {test: set} for the tests `c` and `p`.

    `data` is a set itself, or has sets as subfolders. If it has CIFAR-10-C and CIFAR-100-C, the one with the
    model's number of classes is taken.

    Args:
        data: the images given by the user.
        predictor: the model that the images are resized for.
        pick: selects the rows to read of each part; None: all.
    """
    top = folder_of(data)
    sets: dict[str, PublishedSet] = {}
    if top is None:
        return sets
    for test, names in _FOLDERS.items():
        preferred = f"cifar-{predictor.num_classes}-{test}"
        # A stable sort by "is not the preferred name" moves the preferred name to the front.
        inner = [top / name for name in sorted(names, key=preferred.__ne__) if (top / name).is_dir()]
        for root in (top, *inner):
            layout = _layout(root, test)
            if layout is None and root != top:
                # The folder has the name of a set, but the first part is missing: `check` will report it.
                layout = any(root.glob("*.npy"))
            if layout is not None:
                sets[test] = PublishedSet(root, layout, predictor, pick)
                break
    return sets


def _layout(root: Path, test: str) -> bool | None:
    """True if `root` holds a set of this test as arrays, False if as folders, None if it holds none."""
    array = root / f"{_FIRST}.npy"
    if array.is_file():
        # (N, S, S, 3) images or (N, T, S, S, 3) sequences. None: a damaged file, which `check` will report.
        dimensions = released.dimensions(array)
        return True if dimensions in (None, 4 if test == "c" else 5) else None
    for folder in (root, *(root / name for name in _FAMILIES)):
        inner = folder / _FIRST
        if inner.is_dir():
            has_severities = any((inner / str(n)).is_dir() for n in range(1, released.SEVERITIES + 1))
            return False if has_severities == (test == "c") else None
    return None


def folder_of(data: Labeled) -> Path | None:
    """The folder or file that `data` names; None if it is an array or several paths."""
    if isinstance(data, tuple | list) and len(data) == 1:
        data = data[0]
    return Path(data) if isinstance(data, str | Path) else None


def beside(data: Labeled) -> Labeled:
    """The folder `val` in `data`, if `data` is a folder of several sets; otherwise `data` itself."""
    top = folder_of(data)
    return data if top is None or not (top / "val").is_dir() else top / "val"


def with_published(sets: dict[str, PublishedSet], made: SuiteImages | None = None) -> SuiteImages:
    """`made` with its generated images replaced by published ones, for the tests in `sets`."""
    if made is None:
        made = SuiteImages(_none, _none, _none)
    if "c" in sets:
        made = replace(with_corrupted(made, sets["c"]), corruptions=sets["c"].corruptions)
    return with_perturbed(made, sets["p"]) if "p" in sets else made


def with_corrupted(made: SuiteImages, disk: PublishedSet) -> SuiteImages:
    """`made` with the corruptions of a set on disk. The extra corruptions are not among them."""

    def corrupted(name: str, severity: int) -> Iterable[LabeledBatch]:
        if name in CORRUPTIONS:
            return disk.corrupted(name, severity)
        return made.corrupted(name, severity)

    return replace(made, corrupted=corrupted)


def with_perturbed(made: SuiteImages, disk: PublishedSet) -> SuiteImages:
    """`made` with the perturbations of a set on disk. The extra perturbations are not among them."""

    def perturbed(name: str) -> Iterable[Tensor]:
        return disk.perturbed(name) if name in PERTURBATIONS else made.perturbed(name)

    return replace(made, perturbed=perturbed)


def _decoded(path: Path) -> Tensor:
    """The whole image (3, S, S) uint8: published images are cropped already."""
    try:
        image = decode(path.read_bytes(), DataConfig().max_pixels)
    except (OSError, DecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}); copy it again from the published set") from error
    return view(image, min(image.size), _WHOLE)


def _sequence(path: Path) -> Tensor:
    """All frames (T, 3, S, S) uint8 of a sequence."""
    return released.read_frames(path, _decoded) if path.is_dir() else released.read_video(path)


def _none(*_: object) -> Iterator[Any]:
    """Reader for images that --data does not have."""
    raise InputError("--data has no images for this test; give the folder of labelled images")
