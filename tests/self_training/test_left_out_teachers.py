"""A teacher that val gives the weight 0 is as absent as one that is given it: it neither labels nor votes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image

VAL = 60  # enough for weights by val

Chance = Callable[[int], float]
"""Number of an image -> probability of its class."""


def right(number: int) -> float:
    return 0.97 + number % 7 / 1000


def first_half(number: int) -> float:
    return (0.9, 0.6)[number % 2] + number % 7 / 1000


def second_half(number: int) -> float:
    return (0.6, 0.9)[number % 2] + number % 7 / 1000


def worse(number: int) -> float:
    return (0.3, 0.52, 0.54)[number % 3]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny images with more of val."""
    root = tiny.write_images(tmp_path_factory.mktemp("many"))
    for kind, label in enumerate(tiny.CLASSES):
        for number, pixels in enumerate(tiny.pictures(kind, VAL // 3, 9)):
            Image.fromarray(pixels).save(root / "val" / label / f"more-{number}.png")
    return root


def stored(images: Path, out: Path, chance: Chance) -> dict[str, str]:
    """An entry for probabilities of all images: those of the class, and the rest for the next one."""
    columns: dict[str, list[Any]] = {name: [] for name in ("content_hash", *tiny.CLASSES)}
    for number, path in enumerate(sorted(images.glob("*/*/*.png"))):
        columns["content_hash"].append(hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
        for name, probability in zip(tiny.CLASSES, (chance(number), 1 - chance(number), 0.0), strict=True):
            place = (tiny.CLASSES.index(path.parent.name) + tiny.CLASSES.index(name)) % 3
            columns[tiny.CLASSES[place]].append(probability)
    pq.write_table(pa.table(columns), out)
    return {"labels_from": str(out)}


@pytest.mark.parametrize(
    ("chances", "weights"),
    [((right, worse), [1.0, 0.0]), ((worse, first_half, second_half), [0.0, 0.5, 0.5])],
)
def test_a_weight_of_0_by_val_is_a_given_weight_of_0(
    many: Path, tmp_path: Path, chances: tuple[Chance, ...], weights: list[float]
) -> None:
    entries = [stored(many, tmp_path / f"{number}.parquet", chance) for number, chance in enumerate(chances)]
    agreement = ("student.selection.agreement", 0.75)
    fields = [("teachers", entries), ("control", "none")]
    alone = len([weight for weight in weights if weight]) == 1
    chosen = tiny.config(many, *fields, ("teacher_weights", "val"), agreement)
    # The agreement of one teacher is refused.
    given = tiny.config(many, *fields, ("teacher_weights", weights), *([] if alone else [agreement]))
    lines = tiny.run(chosen, tmp_path / "val")
    tiny.run(given, tmp_path / "given")
    for part in sorted((tmp_path / "given" / "iteration-1" / "labels").glob("*.parquet")):
        assert (tmp_path / "val" / "iteration-1" / "labels" / part.name).read_bytes() == part.read_bytes()
    ours, theirs = (
        pq.read_table(tmp_path / run / "iteration-1" / "selection.parquet") for run in ("val", "given")
    )
    assert ours.equals(theirs)
    notes = [line for line in lines if "selection.agreement leaves out no image" in line]
    assert len(notes) == alone and all("gives existing-1 all the weight" in note for note in notes)
    again = tiny.run(chosen, tmp_path / "val")
    assert "labels-1: done before, skipped" in again
    assert [line for line in again if "selection.agreement" in line] == notes
