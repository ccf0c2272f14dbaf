"""Labels that a person gives: they change what they name, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from noisystudent.config import DataConfig
from noisystudent.data.sources import (
    ArraySource,
    Sources,
    listing_fingerprint,
    open_sources,
    with_given_labels,
)
from noisystudent.errors import InputError

CLASSES = ("blue", "green", "red")


def write(path: Path, *rows: str, header: str = "key,label") -> Path:
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def config(images: Path, *files: Path) -> DataConfig:
    folders = {field: (str(images / name),) for field, name in tiny.SETS.items()}
    return DataConfig(**folders, given_labels=tuple(map(str, files)))  # type: ignore[arg-type]


def labels(sources: Sources, name: str) -> dict[str, str | None]:
    source = dict(sources.named())[name]
    found = {item.id: item.label for item in source.items()}
    assert len(found) == len(source)
    return found


def in_memory(labeled: list[int], pool: int) -> Sources:
    """Each image has its number as its only grey level; those of the pool come last."""
    numbers = np.arange(len(labeled) + pool, dtype=np.uint8)
    pixels = np.broadcast_to(numbers[:, None, None], (len(numbers), 2, 2)).copy()
    names = [CLASSES[label] for label in labeled]
    return Sources(ArraySource(pixels[: len(labeled)], names), ArraySource(pixels[len(labeled) :]))


@settings(max_examples=50, deadline=None)
@given(
    labeled=st.lists(st.integers(0, 2), min_size=3, max_size=6).map(lambda some: [0, 1, 2, *some]),
    pool=st.integers(2, 6),
    data=st.data(),
)
def test_images_are_conserved_and_have_the_given_labels(
    tmp_path_factory: pytest.TempPathFactory, labeled: list[int], pool: int, data: st.DataObject
) -> None:
    total = len(labeled) + pool
    fixes = data.draw(st.dictionaries(st.integers(0, total - 2), st.sampled_from(("", *CLASSES))))
    keys = [f"labeled:{row:08d}" for row in range(len(labeled))] + [f"pool:{row:08d}" for row in range(pool)]
    rows = [f"{keys[number]},{label}" for number, label in fixes.items()]
    file = write(tmp_path_factory.getbasetemp() / "fixes.csv", *rows)
    changed = with_given_labels(in_memory(labeled, pool), DataConfig(given_labels=(str(file),)))
    found: dict[str, dict[int, str | None]] = {}
    for name, source in changed.named():
        # The pixels say which image it is, wherever it is now.
        found[name] = {
            int(np.asarray(source.read(item.shard, item.offset, item.size, item.id))[0, 0]): item.label
            for item in source.items()
        }
        assert len(found[name]) == len(source)
    expected = {number: CLASSES[label] for number, label in enumerate(labeled)} | fixes
    assert found["labeled"] == {number: label for number, label in expected.items() if label}
    assert found["pool"].keys() == set(range(len(labeled), total)) - found["labeled"].keys()


def test_labels_that_are_there_already_change_nothing(images: Path, tmp_path: Path) -> None:
    same = write(tmp_path / "same.csv", "labeled:red/00.png,red", "pool:red/00.png,", "val:blue/00.png,blue")
    before, after = open_sources(config(images)), open_sources(config(images, same))
    assert listing_fingerprint(after) == listing_fingerprint(before)


def test_the_notes_count_what_is_changed(images: Path, tmp_path: Path) -> None:
    """An image of the pool that gets a label is not left out."""
    fixes = write(
        tmp_path / "fixes.csv", "pool:red/00.png,red", "labeled:red/00.png,", "labeled:red/01.png,blue"
    )
    sources = dict(open_sources(config(images, fixes)).named())
    assert sources["pool"].notes() == ()
    assert [note.partition(": ")[2] for note in sources["labeled"].notes()] == [
        "1 images have other labels, and 1 are left out, as given",
        "1 images of the pool have given labels, and are labelled images now",
    ]


def test_the_fingerprint_is_of_the_labels_and_not_of_the_file(images: Path, tmp_path: Path) -> None:
    rows = ("labeled:red/00.png,blue", "pool:red/01.png,red")
    one, other = write(tmp_path / "one.csv", *rows), write(tmp_path / "other.csv", *reversed(rows))
    os.utime(other, (0, 0))
    first, second = (listing_fingerprint(open_sources(config(images, file))) for file in (one, other))
    assert first == second != listing_fingerprint(open_sources(config(images)))
    changed = write(tmp_path / "one.csv", rows[0], "pool:red/01.png,green")
    assert listing_fingerprint(open_sources(config(images, changed))) != first


def test_a_pool_image_with_a_given_label_is_of_the_labelled_images(images: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(images, tmp_path / "images"))
    file, red = write(tmp_path / "one.csv", "pool:red/01.png,red"), copied / "pool" / "red"
    before = listing_fingerprint(open_sources(config(copied, file)))
    shutil.copy(red / "02.png", red / "01.png")
    assert listing_fingerprint(open_sources(config(copied, file))).labeled != before.labeled


def test_an_image_is_named_by_its_key_or_its_path(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = images / "labeled" / "red" / "00.png"
    monkeypatch.chdir(images.parent)
    for name in (
        "labeled:red/00.png",
        str(file),
        os.path.relpath(file),
        f"{images}/val/../labeled/red/00.png",
    ):
        changed = open_sources(config(images, write(tmp_path / "fixes.csv", f"{name},blue")))
        assert labels(changed, "labeled")["red/00.png"] == "blue", name
        assert labels(changed, "val")["red/00.png"] == "red"


def test_several_folders_and_files_are_one_set(images: Path, tmp_path: Path) -> None:
    more = shutil.copytree(images / "labeled", tmp_path / "more")
    files = [
        write(tmp_path / "a.csv", f"{more}/red/00.png,blue", header="filepath,label"),
        write(tmp_path / "b.csv", ",labeled:labeled/red/01.png,", header="filepath,key,label"),
    ]
    given = DataConfig(labeled=(str(images / "labeled"), str(more)), given_labels=tuple(map(str, files)))
    found = labels(open_sources(given), "labeled")
    assert found["more/red/00.png"] == "blue" and found["labeled/red/00.png"] == "red"
    assert "labeled/red/01.png" not in found


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("labeled:red/77.png,red",), "line 2: no image 'labeled:red/77.png' in labeled, val, test, pool"),
        (
            ("labeled:red/00.png,gren",),
            "line 2: label 'gren' is no class of data.labeled; did you mean 'green'",
        ),
        (("pool:red/00.png,red", "pool:red/00.png,blue"), "line 3: .* label 'blue', and 'red' in .* line 2"),
        (
            ("red/00.png,blue",),
            "red/00.png is in labeled and pool and test and val; write labeled:red/00.png",
        ),
        ((",blue",), "line 2: names no image; fill key"),
    ],
)
def test_a_wrong_row_is_one_line(images: Path, tmp_path: Path, rows: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        open_sources(config(images, write(tmp_path / "fixes.csv", *rows)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "has the columns a, b; it must have label"),
        (b"", "has the columns none"),
        (b"key,label\n\xff,red\n", "cannot be read as CSV"),
    ],
)
def test_a_file_that_is_no_such_table_is_one_line(
    images: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "fixes.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_sources(config(images, tmp_path / "fixes.csv"))


def test_a_byte_order_mark_is_no_part_of_the_header(images: Path, tmp_path: Path) -> None:
    (tmp_path / "fixes.csv").write_bytes("\ufefflabel,key\nblue,labeled:red/00.png\n".encode())
    changed = open_sources(config(images, tmp_path / "fixes.csv"))
    assert labels(changed, "labeled")["red/00.png"] == "blue"
