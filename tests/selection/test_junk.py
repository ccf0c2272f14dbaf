"""Junk: pool images with a low energy, for which labelled images give the limit."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from selection_reference import Row, pool, read, write

from noisystudent.config import SelectionConfig
from noisystudent.errors import InputError, NoisyStudentError, RunError
from noisystudent.records import PseudoLabels, Selection
from noisystudent.run.rundir import LabelsDir, RunDir
from noisystudent.selection import energy_limit, junk_note, read_energies, reassign, select, summary

Mode = Literal["paper", "official", "adaptive", "threshold", "all"]
MODES: list[Mode] = ["paper", "official", "adaptive", "threshold", "all"]
rates = st.sampled_from([0.0, 0.05, 0.25, 0.3, 0.99])
# Few values, so that many are equal; the neighbour of one; and that of images without logits.
values = st.sampled_from([-7.5, -0.1, 0.1, float(np.nextafter(np.float32(0.1), np.float32(1))), 3.0, 1e30])
images = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 100), st.one_of(values, st.just(float("nan")))), max_size=30
)


def labeled(
    folder: Path, rows: list[Row], pool_energies: Any, known: NDArray[np.float32] | None
) -> PseudoLabels:
    """Label files with energies, and those of labelled images beside them."""
    labels = write(folder, {"part-00000.parquet": rows})
    (part,) = LabelsDir(folder).parts()
    energy = pa.array(np.array(pool_energies, np.float32))
    pq.write_table(pq.ParquetFile(part).read().append_column("energy", energy), part)
    if known is not None:
        np.save(LabelsDir(folder).energies, known)
    return labels


def straight(known: NDArray[np.float32], rate: float) -> float:
    """The largest limit below which at most this share of the labelled images is; 0 images need none."""
    limits = [limit for limit in known.tolist() if (known < np.float32(limit)).sum() <= rate * len(known)]
    return max(limits, default=-np.inf) if int(rate * len(known)) else -np.inf


@settings(max_examples=12, deadline=None)
@example(drawn=[(0, 0, np.nan), (0, 0, -7.5)], known=[-7.5, -0.1], rate=0.99, mode="paper")
@example(drawn=[(0, 0, np.nan), (0, 0, -7.5)], known=[-7.5, 0.1, 0.1], rate=0.4, mode="paper")
@given(drawn=images, known=st.lists(values, min_size=1, max_size=25), rate=rates, mode=st.sampled_from(MODES))
def test_junk_is_what_numpy_finds_and_the_rest_is_the_selection_of_a_smaller_pool(
    drawn: list[tuple[int, int, float]], known: list[float], rate: float, mode: Mode
) -> None:
    rows, unseen = pool([(label, part / 100) for label, part, _ in drawn]), np.array(known, np.float32)
    energies = np.array([energy for *_, energy in drawn], np.float32)
    junk = energies < straight(unseen, rate)
    off = SelectionConfig(mode=mode, junk="off", junk_rejection=rate)
    with tempfile.TemporaryDirectory() as name:
        labels = labeled(Path(name) / "labels", rows, energies, unseen)
        rest = [row for row, out in zip(rows, junk, strict=True) if not out]
        smaller = labeled(Path(name) / "rest", rest, energies[~junk], None)
        out = Path(name) / "selection.parquet"
        plain, alone = (read(select(each, off, seed=1, out=out)) for each in (labels, smaller))
        report = read(select(labels, replace(off, junk="report"), seed=1, out=out))
        dropped = select(labels, replace(off, junk="drop"), seed=1, out=out)
        drop, counts = read(dropped), summary(dropped)
    assert not any(row.pop("junk") for row in plain)
    assert [row.pop("junk") for row in report] == junk.tolist() == [row.pop("junk") for row in drop]
    assert report == plain, "a mark decides nothing"
    assert [row for row in drop if row["reason"] != "junk"] == [
        {name: value for name, value in row.items() if name != "junk"} for row in alone
    ]
    for row, out_of_domain in zip(drop, junk, strict=True):
        assert (row["reason"] == "junk") == out_of_domain and not (out_of_domain and row["repeats"])
    reasons = Counter(str(row["reason"]) for row in drop)
    assert reasons.total() == counts["images"] == len(rows) and reasons["junk"] == counts["junk"]
    assert reasons["kept"] == counts["kept"] and counts["junk_kept"] == 0


@settings(max_examples=40, deadline=None)
@given(known=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60), rate=st.floats(0, 0.999))
def test_at_most_the_stated_share_of_labelled_images_is_junk(known: list[float], rate: float) -> None:
    energies = np.array(known, np.float32)
    limit = energy_limit(energies, rate)
    rejected = 0 if limit is None else int((energies < limit).sum())
    assert rejected <= rate * len(known)
    if len(set(known)) == len(known):  # and without ties no larger share is possible
        assert rejected + 1 > rate * len(known) - 1e-9
    assert energy_limit(energies, 0.0) is None


@pytest.fixture
def labels(tmp_path: Path) -> PseudoLabels:
    rows = pool([(number % 4, 0.35 + number / 100) for number in range(40)])
    energies = np.arange(40) % 10
    return labeled(tmp_path / "labels", rows, energies, np.arange(5, 25, dtype=np.float32))


def test_a_rate_of_nothing_drops_nothing_and_the_energies_may_be_given(
    labels: PseudoLabels, tmp_path: Path
) -> None:
    def written(energies: NDArray[np.float32] | None = None, **fields: Any) -> bytes:
        config, out = SelectionConfig(**fields), tmp_path / "selection.parquet"
        return select(labels, config, seed=0, out=out, energies=energies).path.read_bytes()

    nothing, stored = written(junk="off"), written(junk="drop", junk_rejection=0.1)
    assert written(junk="drop", junk_rejection=0.0) == nothing != stored
    # Of 20 images in val 2 are below 7.
    given_energies = np.array([7.0] * 19 + [0.0], np.float32)
    assert written(given_energies, junk="drop", junk_rejection=0.1) == stored


def test_the_note_counts_and_a_later_teacher_keeps_the_marks(labels: PseudoLabels, tmp_path: Path) -> None:
    config = SelectionConfig(junk="report", junk_rejection=0.1)
    selection = select(labels, config, seed=0, out=tmp_path / "s.parquet")
    again = reassign(selection, labels, tmp_path / "again.parquet")
    assert read(again) == read(selection)
    counts = summary(selection)
    note = junk_note(counts, config)
    assert note is not None and note.startswith("28 of 40 pool images (70.0%) are marked as junk")
    assert f"{counts['junk_kept']} of them are kept" in note and counts["junk_kept"] > 0
    assert junk_note(counts, SelectionConfig(junk="off")) is None
    # A file of an older version has no marks.
    table = pq.ParquetFile(selection.path).read().drop_columns(["junk"])
    pq.write_table(table, selection.path)
    assert summary(selection)["junk"] == 0
    assert not any(row["junk"] for row in read(reassign(selection, labels, tmp_path / "again.parquet")))


def test_a_noised_teacher_marks_no_junk_and_cannot_drop_any(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    """Its energies of the pool are low because of the noise, and those of labelled images have none."""
    noised = [("student.pseudo_label.noise", True), ("student.selection.junk_rejection", 0.5)]
    shutil.copytree(finished, out := tmp_path / "run")
    lines = tiny.run(tiny.config(images, *noised), out)
    iteration = RunDir(out).iteration(1)
    assert not any(row["junk"] for row in read(Selection(iteration.selection, 3)))
    assert not any("junk" in line for line in lines)
    assert read_energies(PseudoLabels(iteration.labels, 3)) is None
    with pytest.raises(
        InputError, match=r"selection\.junk is drop, but student\.pseudo_label\.noise is true"
    ):
        tiny.config(images, *noised, ("student.selection.junk", "drop"))


@pytest.mark.parametrize("damage", ["no column", "no energies", "cut energies"])
def test_missing_and_damaged_energies_are_one_line(labels: PseudoLabels, tmp_path: Path, damage: str) -> None:
    folder, out = LabelsDir(labels.path), tmp_path / "s.parquet"
    expected: type[NoisyStudentError] = InputError
    if damage == "no column":
        (part,) = folder.parts()
        pq.write_table(pq.ParquetFile(part).read().drop_columns(["energy"]), part)
    elif damage == "no energies":
        folder.energies.unlink()
    else:
        folder.energies.write_bytes(folder.energies.read_bytes()[:70])
        expected = RunError
    with pytest.raises(expected, match="label the pool again") as error:
        select(labels, SelectionConfig(junk="drop"), seed=0, out=out)
    assert "\n" not in str(error.value) and str(labels.path) in str(error.value)
    if expected is InputError:  # nothing is marked, and a plain selection needs no energies
        plain, report = (
            select(labels, SelectionConfig(junk=junk), seed=0, out=out).path.read_bytes()
            for junk in ("off", "report")
        )
        assert plain == report
