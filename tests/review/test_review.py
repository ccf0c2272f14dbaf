"""`review` on finished runs: what it names, what it writes, and what comes back with --given-labels."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from html_page import Page
from tiny import Capture, output, refused

from noisystudent import NoisyStudent
from noisystudent.data.sources import ArraySource, Sources
from noisystudent.metrics import scores
from noisystudent.metrics.label_quality import suspected
from noisystudent.recipes import resolve
from noisystudent.review import review


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def reviewed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV file of the finished run."""
    out = tmp_path_factory.mktemp("review") / "review.csv"
    review(finished, out, count=4)
    return out


@pytest.fixture(scope="module")
def folds(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two folds, of labels of which a fifth are wrong."""
    out = tmp_path_factory.mktemp("folds") / "run"
    changes = {"folds": 2, "choose": False, "control": "none"}
    tiny.run(tiny.config(many, *changes.items()), out)
    return out


def test_each_image_is_named_once_with_its_file_and_its_label(reviewed: Path) -> None:
    rows = rows_of(reviewed)
    assert len({row["key"] for row in rows}) == len(rows) > 0
    assert {"next_to_label", "doubtful_and_frequent"} <= {row["reason"] for row in rows}
    for row in rows:
        assert Path(row["filepath"]).is_file()
        assert row["label"] == ("" if row["set"] == "pool" else Path(row["filepath"]).parent.name)
        assert row["predicted"] in tiny.CLASSES and 0 <= float(row["confidence"]) <= 1


def test_the_page_shows_the_same_images_and_loads_nothing(reviewed: Path) -> None:
    page = Page(reviewed.with_suffix(".html").read_text(encoding="utf-8"))
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(rows_of(reviewed))
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)
    assert not page.scripts and "--given-labels" in page.text
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in page.tags)


def test_a_file_that_was_not_edited_changes_no_stage(
    finished: Path, images: Path, recipe: Path, reviewed: Path, capsys: Capture
) -> None:
    words = ("plan", recipe, *tiny.flags(images), "--out", finished, "--given-labels", reviewed)
    states = tiny.table(output(capsys, *words))
    assert states and all(state.startswith("done") for state in states.values())


def test_an_edited_file_moves_and_drops_images_and_leaves_the_files_alone(
    finished: Path, images: Path, recipe: Path, reviewed: Path, tmp_path: Path, capsys: Capture
) -> None:
    before = {path: tiny.digest(path) for path in images.rglob("*.png")}
    rows = rows_of(reviewed)
    named = next(row for row in rows if row["reason"] == "next_to_label")
    named["label"] = "green"
    rows += [{"key": "labeled:red/00.png", "label": "blue"}, {"key": "labeled:red/01.png", "label": ""}]
    edited = tmp_path / "edited.csv"
    with edited.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    words = (recipe, *tiny.flags(images), "--out", finished, "--given-labels", edited)
    assert tiny.table(output(capsys, "plan", *words))["data"].startswith("to redo: labeled, pool changed")
    check = ("check", *tiny.flags(images), "--out", tmp_path / "check", "--given-labels", edited)
    text = output(capsys, *check, "--data.resolution", tiny.SIDE)
    assert "labeled: 18 images" in text and "pool: 41 images" in text
    assert "1 images of the pool have given labels" in text
    assert {path: tiny.digest(path) for path in images.rglob("*.png")} == before


def test_a_second_review_does_not_replace_the_labels_of_the_run(
    finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = shutil.copytree(finished, tmp_path / "my run")
    given = tmp_path / "given.csv"
    given.write_text("key,label\nlabeled:red/00.png,red\n")
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("given_labels: []", f"given_labels: [{given}]"))
    message = refused(capsys, 2, "review", out, "--out", given, "--overwrite")
    assert "holds labels that" in message and given.read_text() == "key,label\nlabeled:red/00.png,red\n"
    output(capsys, "review", out, "--out", second := tmp_path / "second.csv", "--count", 1)
    assert (
        f"noisystudent run --out '{out}' --given-labels {given} {second}"
        in Page(second.with_suffix(".html").read_text(encoding="utf-8")).text
    )


def test_labels_of_another_run_are_reviewed_after_it_ran(
    finished: Path, images: Path, recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    config = out / "config.yaml"
    fixes = tmp_path / "fixes.csv"
    fixes.write_text("key,label\nlabeled:red/00.png,blue\n")
    config.write_text(config.read_text().replace("given_labels: []", f"given_labels: [{fixes}]"))
    message = refused(capsys, 2, "review", out, "--out", tmp_path / "review.csv")
    assert "labels have changed since" in message and not (tmp_path / "review.csv").exists()


@pytest.mark.parametrize("words", [("--out", "review.txt"), ("--out", "review.csv", "--count", "0")])
def test_a_wrong_call_is_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, 2, "review", finished, *words)
    assert "is not a run directory" in refused(capsys, 2, "review", tmp_path / "no", "--out", "review.csv")


def test_images_in_memory_are_reviewed_from_their_arrays(tmp_path: Path, capsys: Capture) -> None:
    labeled = np.concatenate([tiny.pictures(kind, 6, seed=0) for kind in range(3)])
    labels, pool = np.repeat(tiny.CLASSES, 6), np.concatenate([tiny.pictures(k, 4, seed=3) for k in range(3)])
    NoisyStudent(resolve(tiny.RECIPE, [("control", "none")]), out=tmp_path / "run").fit(
        (labeled, labels), pool
    )
    message = refused(capsys, 2, "review", tmp_path / "run", "--out", tmp_path / "review.csv")
    assert "a run on images in memory" in message and "as `sources`" in message
    sources = Sources(ArraySource(labeled, labels), ArraySource(pool))
    lines = review(tmp_path / "run", tmp_path / "review.csv", sources=sources, most=4)
    assert any("of 4 of 16 labelled images" in line for line in lines), "val has the other two"
    rows = rows_of(tmp_path / "review.csv")
    assert rows and all(row["filepath"] == "" for row in rows)
    assert {int(row["key"].removeprefix("pool:")) for row in rows if row["set"] == "pool"} <= set(range(12))


def test_with_folds_the_labels_are_those_that_the_folds_doubt(folds: Path, tmp_path: Path) -> None:
    lines = review(folds, tmp_path / "review.csv")
    assert any(line.startswith("2 networks predicted each label") for line in lines)
    probs, labels = scores.load_predictions(folds / "iteration-0" / "out-of-fold.npz")
    rows = [row for row in rows_of(tmp_path / "review.csv") if row["set"] == "labeled"]
    assert {row["reason"] for row in rows} == {"suspected_label"}
    better = suspected(probs, labels)
    assert len(rows) == (better >= 0).sum() > 0
    assert sorted(row["predicted"] for row in rows) == sorted(tiny.CLASSES[c] for c in better[better >= 0])
    # `many` names each of its images after its true class.
    planted = [row for row in rows if "more-" in row["key"] and f"more-{row['label']}-" not in row["key"]]
    assert len(planted) > len(rows) / 2


def test_cleanlab_reads_the_predictions_out_of_fold(folds: Path) -> None:
    cleanlab = pytest.importorskip("cleanlab.filter")
    with np.load(folds / "iteration-0" / "out-of-fold.npz") as file:
        issues = cleanlab.find_label_issues(
            file["labels"], file["probs"], filter_by="confident_learning", n_jobs=1
        )
        assert np.array_equal(issues, suspected(file["probs"], file["labels"]) >= 0)


def test_fiftyone_reads_the_file(reviewed: Path) -> None:
    """By the importer of `Dataset.from_dir`, which needs no database; only its datasets do."""
    reader = pytest.importorskip("fiftyone.utils.csv", reason="FiftyOne is 600 MB")
    fields = ["key", "label", "reason", "predicted", "confidence"]
    with reader.CSVDatasetImporter(labels_path=str(reviewed), fields=fields) as importer:
        samples = list(importer)
    rows = {row["filepath"]: row for row in rows_of(reviewed)}
    assert {sample.filepath for sample in samples} == rows.keys() and len(samples) == len(rows)
    for sample in samples:
        read = {name: sample.to_dict().get(name) or "" for name in fields}
        assert read == {name: rows[sample.filepath][name] for name in fields}
