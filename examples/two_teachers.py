"""Several teachers, one of which is no network: a support vector machine and a small network label the pool.

    python examples/two_teachers.py

Any model can be a teacher that writes its probabilities to Parquet, with the hash of each image file.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from noisystudent import NoisyStudent

SHORT: dict[str, Any] = {
    "teacher__train__steps": 150,
    "student__train__steps": 200,
    "student__unlabeled_ratio": 3,
    "students": 1,
}
SETS = {"labeled": slice(0, 100), "val": slice(100, 200), "pool": slice(200, 1000), "test": slice(1000, None)}


def write_folders(root: Path) -> list[bytes]:
    """Write `<set>/<class>/<image>.png` for all digits, and return the hash of each file."""
    digits, hashes = load_digits(), []
    names = {row: name for name, rows in SETS.items() for row in range(len(digits.target))[rows]}
    for row, pixels in enumerate((digits.images * 255 / 16).astype(np.uint8)):
        file = root / names[row] / str(digits.target[row]) / f"{row:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        hashes.append(hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
    return hashes


def main(root: Path) -> None:
    """Train a support vector machine, store its probabilities, and let it teach beside a network."""
    hashes = write_folders(root)
    X, y = load_digits(return_X_y=True)
    machine = CalibratedClassifierCV(SVC(), ensemble=False).fit(X[SETS["labeled"]], y[SETS["labeled"]])
    columns = {str(digit): probs for digit, probs in enumerate(machine.predict_proba(X).T)}
    pq.write_table(pa.table({"content_hash": hashes, **columns}), root / "machine.parquet")

    teachers = [{}, {"labels_from": str(root / "machine.parquet")}]  # {}: the recipe's own teacher
    model = NoisyStudent("demo", out=root / "run", teachers=teachers, **SHORT)
    model.fit(root / "labeled", root / "pool", val=root / "val", test=root / "test")
    print(f"support vector machine alone: {machine.score(X[SETS['test']], y[SETS['test']]):.1%}")
    for name, scores in model.scores_.items():
        if "test" in scores:
            print(f"{name}: {scores['test']['top1']:.1%}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
