"""Copy images to folders with the names of their classes."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from noisystudent.console import Progress
from noisystudent.errors import InputError
from noisystudent.inference.images import check
from noisystudent.inference.predict import Predictions
from noisystudent.run.files import atomic, check_new_folder


def check_sorted(out: Path | None, classes: tuple[str, ...]) -> None:
    """Check that images can be sorted into `out`, before they are predicted; None: they are not sorted.

    Raises:
        InputError: `out` exists or cannot be made, or the name of a class cannot be the name of a folder.
    """
    if out is None:
        return
    check_new_folder(out, "--sort-into")
    for name in classes:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise InputError(f"--sort-into is {out}, but the class {name!r} cannot be the name of a folder")


def copy_sorted(predictions: Predictions, classes: tuple[str, ...], out: Path, *, progress: Progress) -> None:
    """Copy each image to `out`/<class>/<its name>. The images themselves are not changed.

    The bytes are copied, so that images of tar and Parquet files are sorted, too, and no change of a copy
    changes an original. Pixels of an array become PNG files. A name that a class has already gets a number.

    Args:
        predictions: the images and their predictions.
        classes: class names, in the order of the probabilities.
        out: a new folder, see `check_sorted`. It appears when it is complete.
        progress: shows the progress and has the signal.

    Raises:
        RunError: an image or the disk cannot be read or written.
        Stopped: a signal was received.
    """
    places, labels = predictions.places, [classes[k] for k in predictions.probs.argmax(1)]
    used = Counter[str]()
    with atomic(out) as folder:
        for done, (place, label) in enumerate(zip(places, labels, strict=True), start=1):
            check(progress)
            data, (*_, name) = predictions.source.read(*place), place
            content, name = (data, name) if isinstance(data, bytes) else (_png(data), f"{name}.png")
            target = folder / _free(name, label, used)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            progress.advance("sorting", done, len(places))


def _free(name: str, label: str, used: Counter[str]) -> str:
    """<class>/<file>, which no other image has. Folders of the name are left out."""
    file = Path(f"{label}/{Path(name).name}")
    while used[str(file)]:
        number = used[str(file)]
        used[str(file)] += 1
        file = file.with_stem(f"{file.stem}-{number + 1}")
    used[str(file)] += 1
    return str(file)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
