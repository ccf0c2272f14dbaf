"""Published corrupted and perturbed sets on disk, shown to a model as its own clean views would be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from noisystudent.config import DataConfig
from noisystudent.data.decode import decode, view
from noisystudent.errors import InputError
from noisystudent.evaluate import released
from noisystudent.evaluate.pictures import Labeled as Shown
from noisystudent.evaluate.pictures import Pictures
from noisystudent.evaluate.robustness import CORRUPTIONS, PERTURBATIONS
from noisystudent.inference.images import Labeled
from noisystudent.inference.loading import Predictor

_BATCH = 128
_WHOLE = np.array([0.0, 0.0, 1.0, 1.0], np.float32)
_FOLDERS = {"c": ("imagenet-c", "cifar-10-c", "cifar-100-c"), "p": ("imagenet-p", "cifar-10-p")}


@dataclass(frozen=True, slots=True)
class Found:
    """A published set.

    Attributes:
        root: its folder.
        arrays: CIFAR's layout, else ImageNet's.
        predictor: whom it is shown to.
    """

    root: Path
    arrays: bool
    predictor: Predictor

    @property
    def note(self) -> str:
        """Where the numbers come from."""
        return f"the published images in {self.root}"

    def corrupted(self, name: str, severity: int) -> Iterator[Shown]:
        """One cell of a C set."""
        if self.arrays:
            cell = released.read_arrays(self.root, name, severity, batch_size=_BATCH)
        else:
            classes = self.predictor.classes
            cell = released.read_folder(
                self.root, name, severity, classes=classes, decode=self._decode, batch_size=_BATCH
            )
        for images, labels in cell:
            yield self._sized(images), labels

    def perturbed(self, name: str) -> Iterator[Tensor]:
        """The sequences of a P set, eight at a time."""
        if self.arrays:
            parts: Iterable[Tensor] = released.read_sequence_arrays(self.root, name, batch_size=8)
        else:
            parts = (
                frames
                for frames, _ in released.read_sequence_folder(
                    self.root, name, classes=self.predictor.classes, decode=self._sequence, batch_size=8
                )
            )
        for frames in parts:
            yield self._sized(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def _decode(self, path: Path) -> Tensor:
        """An image as it is; the published ones were cropped already."""
        picture = decode(path.read_bytes(), DataConfig().max_pixels)
        return view(picture, min(picture.size), _WHOLE)

    def _sequence(self, path: Path) -> Tensor:
        return released.read_frames(path, self._decode) if path.is_dir() else released.read_video(path)

    def _sized(self, images: Tensor) -> Tensor:
        """At the model's resolution, without a second crop."""
        side = self.predictor.model.resolution
        if images.shape[-1] != side:
            images = functional.interpolate(images, (side, side), mode="bicubic", antialias=True)
        return images.to(self.predictor.device)


def find(data: Labeled, predictor: Predictor) -> dict[str, Found]:
    """The published sets `c` and `p` in `data`, by test."""
    top = folder_of(data)
    if top is None:
        return {}
    found = {}
    for test, names in (("c", CORRUPTIONS), ("p", PERTURBATIONS)):
        for root in (top, *(top / name for name in _FOLDERS[test])):
            arrays = (root / f"{names[0]}.npy").is_file()
            inner = f"{names[0]}/1" if test == "c" else names[0]
            if arrays or any((folder / inner).is_dir() for folder in (root, *root.glob("*"))):
                found[test] = Found(root, arrays, predictor)
    return found


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
        made = replace(made, corrupted=found["c"].corrupted, corruptions=CORRUPTIONS)
    return replace(made, perturbed=found["p"].perturbed) if "p" in found else made


def _none(*_: object) -> Iterator[Any]:
    raise InputError("these images are not there; give --data the folder of labelled images")
