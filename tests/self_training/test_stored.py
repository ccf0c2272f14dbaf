"""Probabilities made elsewhere: any order, division and form gives the same; wrong files are one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from noisystudent.config import FirstTeacherConfig
from noisystudent.data.imageset import ImageSet
from noisystudent.errors import InputError
from noisystudent.self_training.stored import match, open_stored

Table = dict[str, Any]


@pytest.fixture(scope="module")
def pool(images: Path, finished: Path) -> ImageSet:
    return tiny.opened(images, finished)[1].pool


@pytest.fixture(scope="module")
def probs(pool: ImageSet) -> NDArray[np.float32]:
    return np.random.default_rng(0).dirichlet(np.ones(3), len(pool)).astype(np.float32)


def keys(pool: ImageSet, name: str) -> list[Any]:
    if name == "id":
        return pool.ids(np.arange(len(pool)))
    return [row.tobytes() for row in pool.content_hash]


def read(path: Path, pool: ImageSet, **fields: Any) -> NDArray[np.float32]:
    """The probabilities as they are stored for the pool."""
    stored = open_stored(FirstTeacherConfig(labels_from=str(path), **fields), tiny.CLASSES)
    out = path.parent / "probs.npy"
    assert match(stored, pool, out) is None
    matched: NDArray[np.float32] = np.load(out)
    return matched


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 99),
    files=st.integers(1, 4),
    key=st.sampled_from(["id", "content_hash"]),
    form=st.sampled_from([None, pa.float16(), pa.float32(), pa.float64()]),
    more=st.integers(0, 20),
)
def test_any_order_division_and_form_gives_the_same(
    pool: ImageSet, probs: NDArray[np.float32], tmp_path: Path, seed: int, files: int, key: str, form: Any,
    more: int,
) -> None:  # fmt: skip
    rng, folder = np.random.default_rng(seed), tmp_path / "parts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    classes = rng.permutation(3)
    # Rows of other images change nothing; neither do further rows of an image after its first.
    rows = rng.permutation(len(pool))
    extra = [f"x{n}" if key == "id" else bytes([n] * 16) for n in range(more)]
    named = [*(keys(pool, key)[row] for row in rows), *extra, keys(pool, key)[0]]
    values = np.concatenate([probs[rows], np.full((more + 1, 3), 1 / 3, np.float32)])[:, classes]
    names = [tiny.CLASSES[place] for place in classes]
    for number, part in enumerate(np.array_split(np.arange(len(named)), files)):
        table: Table = {key: [named[row] for row in part]}
        if form is None:
            table |= {name: values[part, place] for place, name in enumerate(names)}
        else:
            table["probs"] = pa.array(
                [list(values[row].astype(form.to_pandas_dtype())) for row in part], pa.list_(form)
            )
        pq.write_table(pa.table(table), folder / f"{number}.parquet")
    matched = read(folder, pool, classes=() if form is None else tuple(names))
    assert np.abs(matched - probs).max() <= (1e-3 if form == pa.float16() else 0)


def test_pseudo_labels_of_a_run_keep_their_confidence_exactly(pool: ImageSet, finished: Path) -> None:
    folder = finished / "iteration-1" / "labels"
    stored = open_stored(FirstTeacherConfig(labels_from=str(folder)), tiny.CLASSES)
    out = finished.parent / "stored.npy"
    assert match(stored, pool, out) is None
    table = pa.concat_tables([pq.read_table(part) for part in sorted(folder.glob("*.parquet"))])
    matched = np.load(out)
    assert np.array_equal(matched.max(axis=1), table["confidence"].to_numpy())
    assert np.array_equal(matched.argmax(axis=1), table["label"].to_numpy())


def test_val_images_are_covered_only_if_each_has_a_row(images: Path, finished: Path, tmp_path: Path) -> None:
    val = tiny.opened(images, finished)[1].val
    path = tmp_path / "p.parquet"
    table = {"content_hash": keys(val, "content_hash"), "probs": [[0.5, 0.25, 0.25]] * len(val)}
    entry = FirstTeacherConfig(labels_from=str(path), classes=tiny.CLASSES)
    pq.write_table(pa.table(table), path)
    assert match(open_stored(entry, tiny.CLASSES), val, tmp_path / "all.npy") is None
    pq.write_table(pa.table(table).slice(2), path)
    missing = match(open_stored(entry, tiny.CLASSES), val, tmp_path / "few.npy")
    assert missing == (2, val.ids(np.array([0]))[0])
    assert not (tmp_path / "few.npy").exists()


def test_val_images_without_a_row_are_counted_and_the_first_is_named(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    path, dataset = tmp_path / "p.parquet", tiny.opened(images, finished)[1]
    hashes = [*keys(dataset.pool, "content_hash"), *keys(dataset.val, "content_hash")[1:]]
    pq.write_table(pa.table({"content_hash": hashes, "probs": [[0.5, 0.25, 0.25]] * len(hashes)}), path)
    entry = {"labels_from": str(path), "classes": list(tiny.CLASSES)}
    fields: list[tuple[str, Any]] = [("teachers", [{}, entry]), ("control", "none")]
    first = dataset.val.ids(np.array([0]))[0]
    lacking = f"for 1 of {len(dataset.val)} val images, such as {first}"
    for _ in range(2):  # the second call finds the stage finished
        with pytest.raises(InputError, match=f"has no probabilities {lacking}; give rows"):
            tiny.run(tiny.config(images, *fields, ("teacher_weights", "val")), tmp_path / "run")
    lines = tiny.run(tiny.config(images, *fields), tmp_path / "run")
    assert f"note: existing-1: it has no rows {lacking}, so it is not measured" in lines


# --- wrong files ---


def listed(table: Table) -> None:
    """Put a list column in place of the columns of the classes."""
    table["probs"] = [list(row) for row in zip(*(table.pop(name) for name in tiny.CLASSES), strict=True)]


def set_first(value: float) -> Callable[[Table], None]:
    def change(table: Table) -> None:
        table["red"] = np.array([value, *table["red"][1:]], np.float32)

    return change


CHANGES: dict[str, tuple[Callable[[Table], object], str]] = {
    "no key": (lambda t: t.pop("id"), "has neither a column content_hash nor id"),
    "no probabilities": (lambda t: [t.pop(name) for name in tiny.CLASSES], "neither a list column probs nor"),
    "no class": (lambda t: t.pop("red"), "lacks 'red'; it must have the classes of the run"),
    "one more": (lambda t: t.update(pink=t["red"]), "has also 'pink'"),
    "no names": (listed, "does not name its classes; give them as classes"),
    "text as hash": (
        lambda t: t.update(content_hash=[name * 2 for name in t["id"]]),
        "has content_hash as string; it must be binary",
    ),
    "probs as text": (
        lambda t: t.update(probs=["0.2 0.3 0.5"] * len(t["id"])),
        "has probs as string; it must be a list of numbers",
    ),
    "lists of words": (
        lambda t: t.update(probs=[["a", "b", "c"]] * len(t["id"])),
        "has probs as list<.*string>; it must be a list of numbers",
    ),
    "lists of lists": (
        lambda t: t.update(probs=[[[0.2], [0.3], [0.5]]] * len(t["id"])),
        "has probs as list<.*double>>; it must be a list of numbers",
    ),
    "hard labels": (
        lambda t: t.update({name: np.ones(len(t["id"]), np.int64) for name in tiny.CLASSES}),
        "nor a column of floating-point numbers for each class",
    ),
    "above 1": (set_first(1.5), r"has no 3 probabilities, at least 0 and with the sum 1 \(it is"),
    "negative": (set_first(-0.1), "has no 3 probabilities"),
    "not finite": (set_first(float("nan")), "has no 3 probabilities"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_wrong_columns_are_one_line(
    pool: ImageSet, probs: NDArray[np.float32], tmp_path: Path, name: str
) -> None:
    change, message = CHANGES[name]
    table: Table = {"id": keys(pool, "id")}
    table |= {label: probs[:, place] for place, label in enumerate(tiny.CLASSES)}
    change(table)
    pq.write_table(pa.table(table), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / "p.parquet", pool)
    assert "\n" not in str(error.value) and "p.parquet" in str(error.value)


def test_wrong_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no Parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("red", "green"):
        pq.write_table(pa.table({"id": ["a"], name: [1.0]}), tmp_path / "two" / f"{name}.parquet")
    for name, message in {
        "text.parquet": "is not a readable Parquet file",
        "empty": "it must be a Parquet file, or a folder of Parquet files",
        "nothing": "it must be a Parquet file, or a folder of Parquet files",
        "two": "has other columns than green.parquet",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            open_stored(FirstTeacherConfig(labels_from=str(tmp_path / name)), tiny.CLASSES)
        assert "\n" not in str(error.value)


def test_a_class_twice_is_one_line(tmp_path: Path) -> None:
    names = ["id", *tiny.CLASSES, tiny.CLASSES[0]]
    pq.write_table(pa.table([["a"], *[[0.25]] * 4], names=names), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"p\.parquet has the column 'blue' twice"):
        open_stored(FirstTeacherConfig(labels_from=str(tmp_path / "p.parquet")), tiny.CLASSES)


def test_files_with_other_types_are_one_line(tmp_path: Path) -> None:
    for number, value in enumerate([0.5, "half"]):
        table = {"id": ["a"], **{name: [value] for name in tiny.CLASSES}}
        pq.write_table(pa.table(table), tmp_path / f"{number}.parquet")
    with pytest.raises(InputError, match=r"1\.parquet has other columns than 0\.parquet"):
        open_stored(FirstTeacherConfig(labels_from=str(tmp_path)), tiny.CLASSES)


def test_a_file_that_is_damaged_behind_its_schema_is_one_line(
    pool: ImageSet, probs: NDArray[np.float32], tmp_path: Path
) -> None:
    path = tmp_path / "p.parquet"
    columns = {name: probs[:, place] for place, name in enumerate(tiny.CLASSES)}
    pq.write_table(pa.table({"id": keys(pool, "id"), **columns}), path)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"p\.parquet is not a readable Parquet file") as error:
        read(path, pool)
    assert "\n" not in str(error.value)


def test_a_pool_image_without_a_row_stops_the_run(images: Path, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": ["x"], "blue": [1.0], "green": [0.0], "red": [0.0]}), tmp_path / "p.parquet"
    )
    entry = {"labels_from": str(tmp_path / "p.parquet")}
    with pytest.raises(InputError, match="has no row for 42 of 42 pool images, such as") as error:
        tiny.run(tiny.config(images, ("teachers", [{}, entry])), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "iteration-0" / "teacher").exists(), "before anything is trained"
