"""`predict` on patterns, shards and standard input; its best classes; images sorted by their class."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import Capture, call, output, refused

Rows = list[dict[str, Any]]


def rows(capsys: Capture, *words: object) -> Rows:
    found: Rows = json.loads(output(capsys, "predict", *words, "--format", "json"))
    return found


def without_ids(found: Rows) -> Rows:
    return [{key: value for key, value in row.items() if key != "id"} for row in found]


def test_folder_pattern_shard_and_standard_input_give_the_same_rows(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images / "test"
    files = sorted(folder.rglob("*.png"))
    with tarfile.open(tmp_path / "test.tar", "w") as tar:
        for file in files:
            tar.add(file, file.relative_to(folder))
    expected = without_ids(rows(capsys, finished, folder))
    assert len(expected) == len(files)
    assert without_ids(rows(capsys, finished, folder / "*" / "*.png")) == expected
    assert without_ids(rows(capsys, finished, tmp_path / "test.tar")) == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{file}\n" for file in files)))
    assert without_ids(rows(capsys, finished, "-")) == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{file}\r\n" for file in files), newline=""))
    assert without_ids(rows(capsys, finished, "-")) == expected, "a list that Windows has written"


def test_a_name_on_standard_input_ends_at_the_end_of_the_line(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's splitlines also splits at characters that a file name may have."""
    file = tmp_path / "a\u2028b\x0cc.png"
    file.write_bytes((images / "test" / "red" / "00.png").read_bytes())
    monkeypatch.setattr("sys.stdin", io.StringIO(str(file)))
    assert [row["id"] for row in rows(capsys, finished, "-")] == [str(file)]


def test_parquet_needs_a_file_before_anything_is_written(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ("--format", "parquet", "--sort-into", tmp_path / "sorted")
    line = refused(capsys, 2, "predict", finished, images / "test", *words)
    assert line.endswith("--format parquet needs a file: --out FILE.parquet")
    assert not (tmp_path / "sorted").exists()


def test_files_that_are_left_out_are_counted(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A telephone may save a part of its photographs as HEIC, which is not read."""
    for name in ("a.png", "b.heic", "c.heic"):
        (tmp_path / name).write_bytes((images / "test" / "red" / "00.png").read_bytes())
    assert call("predict", finished, tmp_path, "--format", "json") == 0
    printed = capsys.readouterr()
    assert [row["id"] for row in json.loads(printed.out)] == ["a.png"]
    assert f"note: {tmp_path}: files that are not images were left out (.heic: 2)" in printed.err


def test_no_names_on_standard_input(finished: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert refused(capsys, 2, "predict", finished, "-").endswith("give one name a line")


def test_the_best_classes_are_those_of_all_probabilities(
    finished: Path, images: Path, capsys: Capture
) -> None:
    everything = rows(capsys, finished, images / "test")
    best = rows(capsys, finished, images / "test", "--top-k", 2)
    for whole, top in zip(everything, best, strict=True):
        probs = {name: whole[f"p({name})"] for name in tiny.CLASSES}
        first, second = sorted(probs, key=lambda name: -probs[name])[:2]
        assert top == {
            "id": whole["id"],
            "class": first,
            "probability": probs[first],
            "class 2": second,
            "probability 2": probs[second],
        }
    for count in (0, 4):
        line = refused(capsys, 2, "predict", finished, images / "test", "--top-k", count)
        assert line.endswith(f"--top-k is {count}; it must be 1 to 3, the classes of the model")


def test_each_image_is_copied_to_the_folder_of_its_class(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    before = {path: path.read_bytes() for path in (images / "test").rglob("*.png")}
    found = rows(capsys, finished, images / "test", "--sort-into", tmp_path / "sorted")
    copies = sorted((tmp_path / "sorted").rglob("*.png"))
    content = sorted((row["class"], (images / "test" / row["id"]).read_bytes()) for row in found)
    assert sorted((path.parent.name, path.read_bytes()) for path in copies) == content
    assert {path: path.read_bytes() for path in (images / "test").rglob("*.png")} == before
    copies[0].write_bytes(b"changed")  # a copy and no link
    assert {path: path.read_bytes() for path in (images / "test").rglob("*.png")} == before
    line = refused(capsys, 2, "predict", finished, images / "test", "--sort-into", tmp_path / "sorted")
    assert line.endswith(f"--sort-into is {tmp_path / 'sorted'}, which exists; name a new folder")


def test_the_table_cannot_lie_among_the_sorted_images(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "sorted"
    words = ("--sort-into", folder, "--out", folder / "found.csv")
    line = refused(capsys, 2, "predict", finished, images / "test", *words)
    assert line.endswith(
        f"--out is {folder / 'found.csv'}, which lies in --sort-into; name a file of another folder"
    )
    assert not folder.exists()


def test_members_of_one_name_are_sorted_by_their_own_classes(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A file that is appended to a tar file again has the same name twice; the first is damaged here."""
    contents = [b"damaged", *((images / "test" / name / "00.png").read_bytes() for name in tiny.CLASSES)]
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for content in contents:
            member = tarfile.TarInfo("a.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found = rows(capsys, finished, tmp_path / "twice.tar", "--sort-into", tmp_path / "sorted")
    assert len({row["class"] for row in found}) > 1
    expected = sorted((row["class"], content) for row, content in zip(found, contents[1:], strict=True))
    copies = (tmp_path / "sorted").rglob("*.png")
    assert sorted((path.parent.name, path.read_bytes()) for path in copies) == expected


def test_a_row_of_an_array_takes_the_place_of_no_file(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    np.savez(tmp_path / "arrays.npz", images=tiny.pictures(2, 1, 5))
    (tmp_path / "files").mkdir()
    Image.fromarray(tiny.pictures(2, 1, 5)[0]).save(tmp_path / "files" / "00000000.png")
    words = (tmp_path / "arrays.npz", tmp_path / "files")
    found = rows(capsys, finished, *words, "--sort-into", tmp_path / "sorted")
    assert len(found) == len(list((tmp_path / "sorted").rglob("*.png"))) == 2


def test_members_of_shards_and_rows_of_arrays_are_sorted(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        tar.add(images / "test" / "red" / "00.png", "../../outside.png")
    np.savez(tmp_path / "arrays.npz", images=tiny.pictures(2, 3, 5))
    for name, count in (("odd.tar", 1), ("arrays.npz", 3)):
        assert call("predict", finished, tmp_path / name, "--sort-into", tmp_path / f"of-{name}") == 0
        assert len(list((tmp_path / f"of-{name}").glob("*/*.png"))) == count
    assert not list(tmp_path.parent.glob("outside.png"))
    capsys.readouterr()
