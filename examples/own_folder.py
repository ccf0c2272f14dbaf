"""From a folder of your own to a report: labels for 100 images, a pool of 900, and a test set.

    python examples/own_folder.py

The folders are written here, from scikit-learn's digits. With your own, start at `NoisyStudent`, take the
recipe "photos" or "folder", and leave out the fields that make this example short.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from noisystudent import NoisyStudent

SHORT: dict[str, Any] = {
    "teacher__train__steps": 150,
    "student__train__steps": 200,
    "student__unlabeled_ratio": 3,
    "students": 1,
}


def write_folders(root: Path) -> None:
    """Write `labeled/<class>/<image>.png`, `test/<class>/<image>.png` and `pool/<image>.png`."""
    digits = load_digits()
    images = (digits.images * 255 / 16).astype(np.uint8)
    for row, (pixels, digit) in enumerate(zip(images, digits.target, strict=True)):
        folder = f"labeled/{digit}" if row < 100 else "pool" if row < 1000 else f"test/{digit}"
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / folder / f"{row:04d}.png")


def main(root: Path) -> None:
    """Train on the folders below `root`, and use the model."""
    write_folders(root)
    model = NoisyStudent("demo", out=root / "run", verbose=True, **SHORT)
    model.fit(root / "labeled", root / "pool", test=root / "test")

    print(model.verdict_["sentence"])
    print(f"right on {model.score(root / 'test'):.1%} of the test images; report: {model.report_}")

    again = NoisyStudent.load(root / "run")  # in another process, on another day
    files = sorted((root / "pool").glob("*.png"))[:5]
    print(dict(zip([file.name for file in files], again.predict(files).tolist(), strict=True)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
