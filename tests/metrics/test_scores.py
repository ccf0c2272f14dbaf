"""Scores are the metrics they are named after; predictions survive the disk, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from noisystudent.errors import InputError, RunError
from noisystudent.metrics import classification, scores

LABELS = np.array([0, 1, 2, 3, 0, 1, 2])
PROBS = np.random.default_rng(0).dirichlet(np.ones(4), len(LABELS)).astype(np.float32)


def test_score_is_the_metrics() -> None:
    found = scores.score(PROBS, LABELS, 10)
    assert list(found) == ["top1", "top5", "nll", "ece", "brier"]
    assert found["top1"] == classification.top_k(PROBS, LABELS, 1)
    assert found["top5"] == 1.0  # four classes
    assert found["ece"] == classification.ece(PROBS, LABELS, 10)
    assert found["nll"] == classification.nll(PROBS, LABELS)
    assert found["brier"] == classification.brier(PROBS, LABELS)


def test_calibration_is_the_metrics_and_has_the_official_rms_where_it_is_defined() -> None:
    found = scores.calibration(PROBS, LABELS, 10)
    assert list(found) == ["nll", "brier", "ece", "rms", "aurra"]
    assert found["ece"] == classification.ece(PROBS, LABELS, 10)
    assert found["rms"] == classification.rms_calibration(PROBS, LABELS)
    assert found["aurra"] == classification.aurra(PROBS, LABELS)
    probs, labels = (np.resize(part, (200, *part.shape[1:])) for part in (PROBS, LABELS))
    assert "rms_official" not in scores.calibration(probs[:199], labels[:199], 10)
    assert scores.calibration(probs, labels, 10)["rms_official"] == classification.rms_official(probs, labels)


def test_predictions_survive_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "student" / "predictions-val.npz"
    scores.save_predictions(path, PROBS, LABELS)
    found = scores.load_predictions(path)
    assert (found.probs == PROBS).all() and (found.labels == LABELS).all()
    assert found.probs.dtype == np.float32 and found.labels.dtype == np.int64
    assert [file.name for file in path.parent.iterdir()] == ["predictions-val.npz"]


def test_a_refused_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    scores.save_predictions(path, PROBS, LABELS)
    with pytest.raises(InputError):
        scores.save_predictions(path, PROBS, LABELS[:3])
    assert (scores.load_predictions(path).labels == LABELS).all()


def test_damaged_predictions_are_one_clear_line(tmp_path: Path) -> None:
    good, path = tmp_path / "good.npz", tmp_path / "predictions.npz"
    scores.save_predictions(good, PROBS, LABELS)
    whole = good.read_bytes()
    np.savez(tmp_path / "pickle.npz", probs=np.array([{}], dtype=object), labels=LABELS)
    np.savez(tmp_path / "other.npz", images=LABELS)
    np.savez(tmp_path / "mismatch.npz", probs=np.ones((2, 2)), labels=LABELS)
    np.save(tmp_path / "array.npy", LABELS)
    others = [
        (tmp_path / name).read_bytes() for name in ("pickle.npz", "other.npz", "mismatch.npz", "array.npy")
    ]
    flipped = bytearray(whole)
    flipped[200] ^= 255
    for damaged in (b"", whole[: len(whole) // 2], b"not a zip", bytes(flipped), *others):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"predictions\.npz does not hold predictions") as error:
            scores.load_predictions(path)
        assert "\n" not in str(error.value)
    with pytest.raises(RunError, match=r"missing\.npz"):
        scores.load_predictions(tmp_path / "missing.npz")
