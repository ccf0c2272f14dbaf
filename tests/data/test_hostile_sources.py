"""Shards and arrays that are damaged or made to harm: one line, little time and memory, no wrong label."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import encoded, random_images
from shard_files import add, parquet

from noisystudent.data.sources import ArraySource, open_source
from noisystudent.data.sources.base import LARGEST_IMAGE
from noisystudent.errors import InputError

PIXELS = random_images(4)
IMAGES = [encoded(pixels) for pixels in PIXELS]


def refusal(path: Path, labeled: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        list(open_source([path], labeled).items())
    line = str(caught.value)
    assert path.name in line and "\n" not in line
    return line


LABELS: dict[str, Any] = {
    "minus two": [-2, 1, 0, 1],
    "nan": [float("nan"), 1.0, 0.0, 1.0],
    "float": [0.5, 1.0, 0.0, 1.0],
    "one-hot": [[0, 1], [1, 0], [0, 1], [1, 0]],
    "booleans": [True, False, True, False],
    "bytes": [b"a", b"b", b"a", b"b"],
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_neither_text_nor_whole_numbers_are_refused(kind: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": IMAGES, "label": LABELS[kind]}), tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array(LABELS[kind]))
    for path in (tmp_path / "a.parquet", tmp_path / "a.npz"):
        line = refusal(path)
        assert "label" in line and any(
            text in line for text in ("right", "whole number", "one for each image")
        )
    names = json.dumps({"info": {"features": {"label": {"names": ["a", "b"]}}}})
    named = pq.read_table(tmp_path / "a.parquet").replace_schema_metadata({"huggingface": names})
    pq.write_table(named, tmp_path / "named.parquet")
    assert "whole number" in refusal(tmp_path / "named.parquet")


def test_two_classes_of_one_name_in_the_metadata_are_refused(tmp_path: Path) -> None:
    names = ["cat", "dog", "cat", "cat"]
    path = parquet(tmp_path / "a.parquet", IMAGES, [0, 1, 0, 1], struct=True, names=names)
    expected = f"{path}: its metadata names 3 classes 'cat'; give each its own name"
    assert refusal(path) == expected
    assert refusal(path, labeled=False) == expected


def test_text_and_whole_numbers_are_labels() -> None:
    def names(labels: Any) -> list[str | None]:
        return [item.label for item in ArraySource(PIXELS, labels).items()]

    assert names(np.array([3, 0, -1, 1], np.int8)) == ["3", "0", None, "1"]
    assert names(["x", None, "-1", ""]) == ["x", None, None, None]


def table(**columns: Any) -> pa.Table:
    return pa.Table.from_arrays(
        [pa.array(values) for values in columns.values()], [name.rstrip("_") for name in columns]
    )


NO_COLUMN = "no column `image` or `bytes` with image bytes"
TABLES: dict[str, tuple[pa.Table, str]] = {
    "two images": (table(image=IMAGES, image_=IMAGES), "2 columns are named `image`; keep one of them"),
    "two labels": (
        table(image=IMAGES, label=[0, 1, 0, 1], label_=[0, 1, 0, 1]),
        "2 columns are named `label`; keep one of them",
    ),
    "numbers": (
        table(image=[{"bytes": n} for n in range(4)]),
        NO_COLUMN,
    ),
    "structs": (table(image=[{"bytes": {"x": b""}}] * 4), NO_COLUMN),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_parquet_file_without_one_column_of_image_bytes_is_refused(kind: str, tmp_path: Path) -> None:
    content, expected = TABLES[kind]
    pq.write_table(content, tmp_path / "a.parquet")
    assert expected in refusal(tmp_path / "a.parquet", labeled=False)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.8, 0.95])
def test_a_damaged_parquet_file_is_one_line_or_bad_images(place: float, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": IMAGES * 9, "label": ["a", "b"] * 18}), path)
    content = bytearray(path.read_bytes())
    at = int(len(content) * place)
    content[at : at + 40] = bytes(40)
    path.write_bytes(content)
    try:
        source = open_source([path], True)
        for item in source.items():
            try:
                source.read(item.shard, item.offset, item.size, item.id)
            except OSError as error:
                assert "\n" not in str(error)
    except InputError as error:
        assert "a.parquet" in str(error) and "\n" not in str(error)


def header(shape: tuple[int, ...], descr: str = "|u1", body: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + body


SMALL = header((2, 2, 2, 3), body=bytes(24))
ARRAYS: dict[str, dict[str, bytes]] = {
    "10^12 images": {"images": header((10**12, 32, 32, 3))},
    "more than 2^63 bytes": {"images": header((10**30, 32, 32, 3))},
    "less than none": {"images": header((-1, 32, 32, 3))},
    "10^12 labels": {"images": SMALL, "labels": header((10**12,), "<i8")},
    "long text": {"images": SMALL, "labels": header((2,), "<U100000000")},
    "zeros": {"images": header((10**8, 1, 1), body=bytes(10**8))},
    "no images": {"labels": header((2,), "<i8", bytes(16))},
    "one label": {"images": SMALL, "labels": header((), "<i8", bytes(8))},
    "cut": {"images": SMALL[:-5]},
    "no header": {"images": b"\x93NUMPY\x07\x00"},
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_npz_takes_no_more_memory_than_its_file_can_hold(kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in ARRAYS[kind].items():
            file.writestr(f"{name}.npy", content)
    refusal(tmp_path / "a.npz", labeled=False)


def test_a_compressed_npz_of_digits_is_read(tmp_path: Path) -> None:
    digits = np.zeros((2000, 28, 28), np.uint8)
    digits[:, 10:20, 10:14] = np.random.default_rng(0).integers(0, 256, (2000, 10, 4))
    np.savez_compressed(tmp_path / "a.npz", images=digits, labels=np.arange(2000) % 10)
    assert len(open_source([tmp_path / "a.npz"], True)) == 2000


def shard(path: Path, pax: dict[str, str] | None = None) -> bytes:
    """Bytes of a shard of four images; the third has further fields in its header."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number, data in enumerate(IMAGES):
            member = tarfile.TarInfo(f"{'ab'[number % 2]}/{number}.png")
            member.size = len(data)
            member.pax_headers = (pax or {}) if number == 2 else {}
            archive.addfile(member, io.BytesIO(data))
    return path.read_bytes()


def member(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


PAX = {
    "size of 40 digits": {"size": "9" * 40},
    "size below 0": {"size": "-5000"},
    "size is text": {"size": "abc"},
    "size of a terabyte": {"size": str(10**12)},
    "sparse map": {"GNU.sparse.map": "0,1,x"},
    "sparse 1.0": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(10**15)},
    "long path": {"path": "x" * 100_000},
}


@pytest.mark.parametrize("kind", PAX)
def test_a_tar_with_an_absurd_header_gives_what_is_before_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    shard(path, PAX[kind])
    source = open_source([path], labeled=False)
    items = list(source.items())
    assert [item.id for item in items][:2] == ["a/0.png", "b/1.png"]
    assert all(item.size < 2**63 for item in items)  # the listing is a table of int64
    for item in items[2:]:
        try:
            data = source.read(item.shard, item.offset, item.size, item.id)
            assert len(data) <= path.stat().st_size
        except OSError as error:
            expected = "an image file may have" if item.size > LARGEST_IMAGE else "cut short or damaged"
            assert expected in str(error)
    assert len(items) == 4 or source.notes()


@pytest.mark.parametrize("kind", [b"x", b"L", b"g", b"S", b"0"])
@pytest.mark.parametrize("size", [8**11 - 1, 0])
def test_a_tar_with_an_absurd_member_gives_what_is_before_it(kind: bytes, size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    whole = shard(path)
    end = len(whole.rstrip(b"\0"))
    path.write_bytes(whole[: end + -end % 512] + member(kind, size) * 3000 + bytes(1000))
    source = open_source([path], labeled=False)
    assert len([item for item in source.items() if item.size > 0]) >= 4
    assert list(source.items())[4:] or source.notes() or size == 0


def test_the_label_of_a_tar_is_short(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "1.png", IMAGES[0])
        add(archive, "1.cls", b"cat" * 10_000_000)
    (item,) = open_source([tmp_path / "a.tar"], labeled=True).items()
    assert item.label is not None and len(item.label) <= 4096


def nested(root: Path, name: str, depth: int) -> None:
    """Folders in folders, with an image in the innermost; made step by step, as their path is too long."""
    here = os.getcwd()
    os.chdir(root)
    for _ in range(depth):
        os.mkdir(name)
        os.chdir(name)
    Path("x.png").write_bytes(IMAGES[0])
    os.chdir(here)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder that is deleted after the test by `rm`: no function of Python deletes such paths."""
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def test_folders_may_be_nested_very_deep(deep: Path) -> None:
    nested(deep, "d", 1500)
    (item,) = open_source([deep], labeled=False).items()
    assert item.id == "d/" * 1500 + "x.png"


def test_a_path_that_is_too_long_is_one_line(deep: Path) -> None:
    nested(deep, "n" * 250, 20)
    with pytest.raises(InputError, match=r"cannot be listed \(File name too long\)"):
        open_source([deep], labeled=False)
    for spec in ("x" * 5000, "x" * 5000 + ".png", "/x" * 3000):
        with pytest.raises(InputError, match="no such file or folder"):
            open_source([spec], labeled=False)
