"""Pseudo-labels on disk, as training targets and as a summary."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labeled_pool import CONFIG, Pool, column, contents, random_pool

from noisystudent.errors import RunError
from noisystudent.pseudo_label import read_targets, summary
from noisystudent.records import PseudoLabels

torch.set_num_threads(1)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("classes", [6, 256])
def test_soft_targets_are_the_teachers_probabilities(
    tmp_path: Path, classes: int, temperature: float
) -> None:
    pool = random_pool(classes=classes)
    labels = pool.label(tmp_path / "labels", replace(CONFIG, temperature=temperature))
    rows = np.arange(27)[::-1].copy()
    targets = read_targets(labels, rows, hard=False, out=tmp_path / "targets.npy")(np.arange(27))
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, pool.probs(temperature)[rows], rtol=2e-3, atol=1e-7)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)


def test_columns_are_those_of_the_record(tmp_path: Path) -> None:
    pool = random_pool()
    labels = pool.label(tmp_path)
    assert column(labels, "row") == list(range(27))
    assert column(labels, "id") == pool.ids(np.arange(27))
    assert column(labels, "content_hash") == [h.tobytes() for h in pool.content_hash]
    assert column(labels, "label") == pool.probs().argmax(axis=1).tolist()
    np.testing.assert_allclose(np.array(column(labels, "confidence")), pool.probs().max(axis=1), rtol=1e-6)
    schema = pq.read_schema(tmp_path / "part-00002.parquet")
    assert [str(schema.field(n).type) for n in ("content_hash", "label", "confidence", "probs")] == [
        "fixed_size_binary[16]",
        "int32",
        "float",
        "fixed_size_list<element: halffloat>[6]",
    ]
    assert [pq.read_metadata(p).num_rows for p in sorted(tmp_path.glob("*.parquet"))] == [12, 12, 3]


def test_ties_go_to_the_lowest_class(tmp_path: Path) -> None:
    logits = np.zeros((3, 300), dtype=np.float32)
    logits[1, [7, 250]] = 2
    labels = Pool(logits).label(tmp_path)
    assert column(labels, "label") == [0, 7, 0]
    assert [list(c) for c in column(labels, "top_classes")][:2] == [[0, 1, 2, 3, 4], [7, 250, 0, 1, 2]]  # type: ignore[call-overload]


@pytest.mark.parametrize("top_k", [1, 5, 400])
def test_above_256_classes_the_top_is_kept_and_the_tail_is_spread(tmp_path: Path, top_k: int) -> None:
    pool = random_pool(classes=300)
    labels = pool.label(tmp_path / "labels", replace(CONFIG, top_k=top_k))
    targets = read_targets(labels, np.arange(27), hard=False, out=tmp_path / "t.npy")(np.arange(27))
    probs = pool.probs()
    k = min(top_k, 300)
    top = np.argsort(-probs, axis=1)[:, :k]
    expected = np.repeat(
        (1 - np.take_along_axis(probs, top, 1).sum(1, keepdims=True)) / max(300 - k, 1), 300, axis=1
    )
    np.put_along_axis(expected, top, np.take_along_axis(probs, top, 1), axis=1)
    np.testing.assert_allclose(targets, expected, rtol=3e-3, atol=2e-7)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
    assert (targets.argmax(axis=1) == probs.argmax(axis=1)).all()


def test_a_target_of_1000_classes_is_small(tmp_path: Path) -> None:
    labels = random_pool(n=20, classes=1000).label(tmp_path / "labels", replace(CONFIG, top_k=16))
    read_targets(labels, np.arange(20), hard=False, out=tmp_path / "t.npy")
    stored = np.load(tmp_path / "t.npy", mmap_mode="r")
    assert stored.dtype.itemsize == 16 * (2 + 2) + 4 < 100


@pytest.mark.parametrize("classes", [6, 300])
def test_hard_targets_are_one_hot_labels(tmp_path: Path, classes: int) -> None:
    pool = random_pool(classes=classes)
    labels = pool.label(tmp_path / "labels", replace(CONFIG, hard=True))
    positions = np.array([2, 0])
    targets = read_targets(labels, np.array([5, 26, 11]), hard=True, out=tmp_path / "t.npy")(positions)
    np.testing.assert_array_equal(
        targets, np.eye(classes, dtype=np.float32)[pool.probs()[[11, 5]].argmax(axis=1)]
    )
    soft = contents(pool.label(tmp_path / "soft", CONFIG))
    assert soft == contents(labels)  # `hard` has an effect when labels are read, not when they are written


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, 26), max_size=40), hard=st.booleans(), data=st.data())
def test_targets_follow_the_rows_in_any_order(tmp_path_factory, rows, hard, data) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.getbasetemp() / "any-order"
    labels = random_pool().label(folder / "labels")
    everything = read_targets(labels, np.arange(27), hard=hard, out=folder / "all.npy")
    some = read_targets(labels, np.array(rows, dtype=np.int64), hard=hard, out=folder / "some.npy")
    assert len(some) == len(rows)
    positions = np.array(
        data.draw(st.lists(st.sampled_from(range(len(rows))), max_size=9)) if rows else [], np.int64
    )
    chosen = np.array(rows, dtype=np.int64)[positions]
    np.testing.assert_array_equal(some(positions), everything(chosen))


def test_targets_pickle_as_a_path(tmp_path: Path) -> None:
    labels = random_pool(n=255, classes=250).label(tmp_path / "labels", replace(CONFIG, part_size=100))
    targets = read_targets(labels, np.arange(255), hard=False, out=tmp_path / "t.npy")
    packed = pickle.dumps(targets)
    assert len(packed) < 500 < 255 * 250
    np.testing.assert_array_equal(pickle.loads(packed)(np.array([3, 200])), targets(np.array([3, 200])))


def test_missing_rows_and_missing_labels_are_named(tmp_path: Path) -> None:
    labels = random_pool().label(tmp_path / "labels")
    with pytest.raises(RunError, match="no label for pool row 27"):
        read_targets(labels, np.array([3, 27, 1]), hard=False, out=tmp_path / "t.npy")
    assert not (tmp_path / "t.npy").exists()
    with pytest.raises(RunError, match="holds no pseudo-labels"):
        summary(PseudoLabels(tmp_path, 6))


def test_special_characters_in_the_path_do_not_matter(tmp_path: Path) -> None:
    labels = random_pool().label(tmp_path / "year=2020 'ü'")
    assert column(labels, "row") == list(range(27))


def test_summary_adds_up(tmp_path: Path) -> None:
    pool = random_pool()
    labels = pool.label(tmp_path)
    truth = pool.probs().argmax(axis=1)
    truth[:9] = -1
    truth[9:12] = (truth[9:12] + 1) % 6
    kept = np.array([0, 9, 20, 21])
    values = summary(labels, truth=truth, kept=kept)
    assert values["images"] == 27 == sum(values["per_class"]) == sum(values["confidence_histogram"]["counts"])
    assert values["per_class"] == np.bincount(pool.probs().argmax(axis=1), minlength=6).tolist()
    expected = np.histogram(pool.probs().max(axis=1), 20, (0, 1))[0].tolist()
    assert values["confidence_histogram"]["counts"] == expected
    assert sum(values["confidence_histogram"]["kept"]) == 4
    assert values["mean_confidence"] == pytest.approx(pool.probs().max(axis=1).mean())
    assert values["accuracy"] == 15 / 18
    assert values["kept_accuracy"] == 2 / 3
