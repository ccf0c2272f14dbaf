"""Published corrupted and perturbed sets on disk, shown to a model as its own clean views would be."""

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
from noisystudent.evaluate import released
from noisystudent.evaluate.pictures import Labeled as Shown
from noisystudent.evaluate.pictures import Pictures
from noisystudent.evaluate.robustness import CORRUPTIONS, PERTURBATIONS
from noisystudent.inference import copies
from noisystudent.inference.images import Labeled
from noisystudent.inference.loading import Predictor

_BATCH, _SEQUENCES = 128, 8
_WHOLE = np.array([0.0, 0.0, 1.0, 1.0], np.float32)
_FOLDERS = {"c": ("imagenet-c", "cifar-10-c", "cifar-100-c"), "p": ("imagenet-p", "cifar-10-p")}
_FAMILIES = ("noise", "blur", "weather", "digital", "extra")
_FIRST = "gaussian_noise"  # of both kinds of set; in one it holds severities, in the other classes


@dataclass(frozen=True, slots=True)
class Found:
    """A published set.

    Attributes:
        root: its folder.
        arrays: CIFAR's layout, else ImageNet's.
        predictor: whom it is shown to.
        pick: draws the sample of each of its parts; None shows all.
    """

    root: Path
    arrays: bool
    predictor: Predictor
    pick: released.Pick | None = None
    _counts: set[int] = field(default_factory=set, init=False, repr=False)

    @property
    def note(self) -> str:
        """Where the numbers come from."""
        who = "the published images" if self.regenerated is None else "ImageNet-C protocol, regenerated,"
        return f"{who} in {self.root}" + ("" if self.pick is None else ", a stratified sample")

    @property
    def regenerated(self) -> dict[str, Any] | None:
        """What this package wrote, if it did: those are not the published images."""
        return copies.note_of(self.root)

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Those of a C set: copies lack frost where there were no photographs."""
        made = self.regenerated
        return CORRUPTIONS if made is None else tuple(made["corruptions"])

    def check(self, test: str, severities: Iterable[int]) -> None:
        """See whether all of the test is there, before hours go into its first parts.

        Raises:
            InputError: a file or folder is missing or is something else.
        """
        made = self.regenerated
        if made is not None and tuple(made["classes"]) != self.predictor.classes:
            raise InputError(f"{self.root} was written for other classes than the model's")
        for name in self.corruptions if test == "c" else PERTURBATIONS:
            for severity in severities if test == "c" else (0,):
                if self.arrays:
                    _ = self._cell(name, severity) if test == "c" else self._frames(name)
                else:
                    released.find(self.root, f"{name}/{severity}" if test == "c" else name)

    def side(self, test: str) -> int:
        """Pixels of side of its images as they are on disk."""
        images = next(self._cell(_FIRST, 1, 1))[0] if test == "c" else next(self._frames(_FIRST, 1))
        return int(images.shape[-1])

    def corrupted(self, name: str, severity: int) -> Iterator[Shown]:
        """One cell of a C set.

        Raises:
            InputError: as of `released`, or not as many images as in the cells before.
        """
        count = 0
        for images, labels in self._cell(name, severity):
            yield fit(images, self.predictor), labels
            count += len(labels)
        self._counts.add(count)
        if len(self._counts) > 1:
            raise InputError(
                f"{self.root}: {name} of severity {severity} has {count:,} images, others have"
                f" {min(self._counts - {count}):,}; is the test set whole?"
            )

    def perturbed(self, name: str) -> Iterator[Tensor]:
        """The sequences of a P set, eight at a time."""
        for frames in self._frames(name):
            yield fit(frames.flatten(0, 1), self.predictor).unflatten(0, frames.shape[:2])

    def _cell(self, name: str, severity: int, size: int = _BATCH) -> Iterator[Shown]:
        model = self.predictor
        if self.arrays:
            classes = model.model.num_classes if self.regenerated is None else None  # those have names
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
    """Pixels (B, 3, S, S) at the model's resolution and on its device: bicubic, without a second crop."""
    side = predictor.model.resolution
    if images.shape[-1] != side:
        resize = partial(functional.interpolate, size=(side, side), mode="bicubic", antialias=True)
        # a GPU has it for floating point alone
        images = resize(images.float()).round().clamp(0, 255).byte() if images.is_cuda else resize(images)
    return images.to(predictor.device)


def find(data: Labeled, predictor: Predictor, pick: released.Pick | None) -> dict[str, Found]:
    """The published sets `c` and `p` that `data` is or holds, by test; of two CIFARs the model's."""
    top = folder_of(data)
    found: dict[str, Found] = {}
    if top is None:
        return found
    for test, names in _FOLDERS.items():
        own = f"cifar-{predictor.model.num_classes}-{test}"
        inner = [top / name for name in sorted(names, key=own.__ne__) if (top / name).is_dir()]
        for root in (top, *inner):
            layout = _layout(root, test)
            if layout is None and root != top:  # of that name, but the first part is missing
                layout = any(root.glob("*.npy"))
            if layout is not None:
                found[test] = Found(root, layout, predictor, pick)
                break
    return found


def _layout(root: Path, test: str) -> bool | None:
    """Whether the set in `root` is of arrays; None where there is no set of this test."""
    array = root / f"{_FIRST}.npy"
    if array.is_file():
        dimensions = released.dimensions(array)
        return True if dimensions in (None, 4 if test == "c" else 5) else None
    for folder in (root, *(root / name for name in _FAMILIES)):
        inner = folder / _FIRST
        if inner.is_dir():
            severe = any((inner / str(severity)).is_dir() for severity in range(1, released.SEVERITIES + 1))
            return False if severe == (test == "c") else None
    return None


def folder_of(data: Labeled) -> Path | None:
    """The one folder or file that `data` names, or None."""
    if isinstance(data, tuple | list) and len(data) == 1:
        data = data[0]
    return Path(data) if isinstance(data, str | Path) else None


def beside(data: Labeled) -> Labeled:
    """`val` where `data` is a folder of several sets, else `data`."""
    top = folder_of(data)
    return data if top is None or not (top / "val").is_dir() else top / "val"


def pictures(found: dict[str, Found], made: Pictures | None = None) -> Pictures:
    """`made` with the published sets in the place of what was to be generated."""
    if made is None:
        made = Pictures(_none, _none, _none)
    if "c" in found:
        made = replace(made, corrupted=found["c"].corrupted, corruptions=found["c"].corruptions)
    return replace(made, perturbed=found["p"].perturbed) if "p" in found else made


def _decoded(path: Path) -> Tensor:
    """An image as it is; the published ones were cropped already."""
    try:
        picture = decode(path.read_bytes(), DataConfig().max_pixels)
    except (OSError, DecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}); bring it back from the published set") from error
    return view(picture, min(picture.size), _WHOLE)


def _sequence(path: Path) -> Tensor:
    return released.read_frames(path, _decoded) if path.is_dir() else released.read_video(path)


def _none(*_: object) -> Iterator[Any]:
    raise InputError("these images are not there; give --data the folder of labelled images")
