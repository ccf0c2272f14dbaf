from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from noisystudent.errors import RunError
from noisystudent.metrics.classification import confusion, reliability, worst_pairs
from noisystudent.metrics.scores import load_predictions
from noisystudent.report import figures
from noisystudent.report.page import RIVALS
from noisystudent.report.read import Model, read_run
from noisystudent.report.templates import count, decimals, p_value, percent, signed
from noisystudent.report.whiskers import whiskers
from noisystudent.run.rundir import CONTROLS, RunDir

scores = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 40), st.integers(2, 6)), elements=st.floats(0, 1, width=32)
)


def test_every_control_has_a_name_in_the_report() -> None:
    assert RIVALS.keys() == {"teacher", *CONTROLS.values()}


@given(scores, st.integers(0, 2**31))
def test_reliability_keeps_every_image_and_both_means(logits: np.ndarray, seed: int) -> None:
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.random.Generator(np.random.Philox(seed)).integers(0, probs.shape[1], len(probs))
    bins = reliability(probs, labels, 15)
    assert bins.count.sum() == len(probs)
    assert bins.mean_confidence == pytest.approx(probs.max(axis=1).mean(), abs=1e-6)
    assert bins.mean_accuracy == pytest.approx((probs.argmax(axis=1) == labels).mean())
    assert (np.diff(bins.confidence[bins.count > 0]) > 0).all()


def test_reliability_of_a_model_that_is_certain_and_correct() -> None:
    bins = reliability(np.eye(4, dtype=np.float32), np.arange(4), 15)
    last = [*[0] * 14, 1]
    assert (bins.confidence.tolist(), bins.accuracy.tolist()) == (last, last)
    assert bins.count.tolist() == [*[0] * 14, 4]


def test_the_reliability_diagram_leaves_out_empty_bins() -> None:
    probs = np.array([[0.9, 0.1], [0.55, 0.45], [0.6, 0.4]], np.float32)
    model = Model("student", 1, [], [], {}, {}, {})
    bins = reliability(probs, np.array([0, 1, 0]), 10)
    _, trace = figures.reliability_diagram([(model, bins)])["data"]
    assert (trace["x"], trace["y"], trace["customdata"]) == ([0.55, 0.6, 0.9], [0.0, 1.0, 1.0], [1, 1, 1])


def test_confusion_counts_true_rows_and_predicted_columns() -> None:
    probs = np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 1]]
    labels = np.array([0, 1, 2, 2, 2])
    assert confusion(probs, labels).tolist() == [[1, 0, 0], [0, 1, 0], [0, 2, 1]]
    assert worst_pairs(probs, labels, 5) == [(2, 1, 2, 3)]


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 3), min_size=1, max_size=3))
def test_whiskers_stay_on_the_axis_and_in_order(triples: list[tuple[float, float, float]]) -> None:
    rows = {
        str(i): dict(zip(("low", "difference", "high"), sorted(triple), strict=True))
        for i, triple in enumerate(triples)
    }
    plot = whiskers(rows)
    for place in plot["rows"].values():
        assert 0 <= place["low"] <= place["dot"] + 0.01
        assert place["dot"] <= place["low"] + place["width"] + 0.01
        assert place["low"] + place["width"] <= 100.01
    positions, values = zip(*plot["ticks"], strict=True)
    assert positions[0] == 0 and positions[-1] == 100
    assert 0 in values
    assert 2 <= len(values) <= 8


@pytest.mark.parametrize("scale", [1.0, 0.2, 0.06, 0.007, 0.0004])
def test_ticks_of_the_whiskers_differ(scale: float) -> None:
    plot = whiskers({"teacher": {"low": -scale, "difference": scale / 3, "high": scale}})
    texts = [f"{value:.{plot['decimals']}f}" for _, value in plot["ticks"]]
    assert [float(text) for text in texts] == pytest.approx([value for _, value in plot["ticks"]])


def test_whiskers_of_no_difference_at_all() -> None:
    zero = {"low": 0.0, "difference": 0.0, "high": 0.0}
    assert whiskers({"teacher": zero})["rows"]["teacher"] == {"low": 0.0, "dot": 0.0, "width": 0.0}


def test_a_resumed_curve_has_each_step_once_and_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "iteration-0" / "teacher"
    folder.mkdir(parents=True)
    lines = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.5},
        {"step": 2, "val_top1": 0.4},
        {"step": 2, "loss": 2.0},
    ]
    torn = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo'
    (folder / "metrics.jsonl").write_text(torn)
    (model,) = read_run(RunDir(tmp_path)).models
    assert model.loss == [(1, 3.0), (2, 2.0)]
    assert model.val_top1 == [(2, 0.4)]


def test_iterations_are_ordered_as_numbers_and_foreign_folders_are_ignored(tmp_path: Path) -> None:
    for name in ("iteration-10", "iteration-2", "iteration-0", "iteration-x", "other"):
        (tmp_path / name / "student").mkdir(parents=True)
    assert [iteration.index for iteration in read_run(RunDir(tmp_path)).iterations] == [0, 2, 10]


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    curve = [(step, step / 2) for step in range(1, 10_001)]
    thin = figures._xy(curve)
    assert len(thin["x"]) <= figures.CURVE_POINTS
    assert thin["x"][-1] == 10_000 and thin["y"][-1] == 5_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.9132), "91.32\u202f%"),
        (percent(-0.18, 0), "−18\u202f%"),
        (signed(-0.0132), "−1.32"),
        (signed(0.5, 0), "+50"),
        (decimals(0.04217), "0.042"),
        (count(50_000), "50,000"),
        (p_value(0.04), "p = 0.040"),
        (p_value(0.000123), "p = 0.00012"),
        (p_value(1.0), "p = 1.00"),
        (p_value(0.0), "p < 0.000001"),
        (percent(None) + signed(float("nan")) + decimals(None) + count(float("inf")), "––––"),
        (figures.label("<b>"), "&lt;b&gt;"),
        (figures.label("x" * 40), "x" * 21 + "…"),
    ],
)
def test_numbers_and_names_are_formatted(text: str, expected: str) -> None:
    assert text == expected


def test_predictions_of_wrong_shape_are_named(tmp_path: Path) -> None:
    file = tmp_path / "predictions-test.npz"
    np.savez(file, probs=np.ones((3, 2), np.float32), labels=np.array([0, 1, 2]))
    with pytest.raises(RunError, match="predictions-test"):
        load_predictions(file)


def test_predictions_of_unknown_label_are_named(tmp_path: Path) -> None:
    file = tmp_path / "predictions-val.npz"
    np.savez(file, probs=np.full((3, 2), 0.5, np.float32), labels=np.array([0, -1, 1]))
    with pytest.raises(RunError, match=r"predictions-val.*labels run from -1"):
        load_predictions(file)
