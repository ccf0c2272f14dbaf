"""A model on tests: order, batching, precision, damage on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from noisystudent.errors import InputError, RunError
from noisystudent.evaluate import metrics, suite
from noisystudent.records import Metric

torch.set_num_threads(1)

IMAGES = torch.arange(7 * 3 * 2 * 2, dtype=torch.uint8).reshape(7, 3, 2, 2)
LABELS = np.array([0, 1, 2, 3, 0, 1, 2])


def predict(images: Tensor) -> Tensor:
    """Logits (B, 4) that differ for every image."""
    return images.float().mean(dim=(1, 2, 3))[:, None] * torch.tensor([0.01, -0.02, 0.03, 0.0])


def batches(size: int) -> Iterator[Tensor]:
    for start in range(0, len(IMAGES), size):
        yield IMAGES[start : start + size]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_probabilities_do_not_depend_on_the_batch_size(size: int) -> None:
    found = suite.predict_probs(predict, batches(size))
    assert found.dtype == np.float32 and found.shape == (7, 4)
    np.testing.assert_allclose(found, predict(IMAGES).softmax(dim=1).numpy(), rtol=1e-6)


def test_half_precision_logits_become_float32_probabilities() -> None:
    found = suite.predict_probs(lambda images: predict(images).bfloat16(), batches(7))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_no_gradient_is_recorded() -> None:
    weight = torch.ones(4, requires_grad=True)
    suite.predict_probs(lambda images: predict(images) * weight, batches(7))
    assert weight.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_output_that_is_not_finite_names_the_images(bad: float) -> None:
    def broken(images: Tensor) -> Tensor:
        logits = predict(images)
        logits[images[:, 0, 0, 0] == IMAGES[5, 0, 0, 0], 1] = bad
        return logits

    with pytest.raises(RunError, match="not finite on images 3 to 5"):
        suite.predict_probs(broken, batches(3))


def test_no_images_is_an_error() -> None:
    with pytest.raises(InputError, match="no images"):
        suite.predict_probs(predict, [])


def test_score_is_the_metrics() -> None:
    probs = suite.predict_probs(predict, batches(7))
    scores = suite.score(probs, LABELS, 10)
    assert list(scores) == ["top1", "top5", "nll", "ece", "brier"]
    assert scores["top5"] == 1.0  # four classes
    assert scores["ece"] == metrics.ece(probs, LABELS, 10) and scores["nll"] == metrics.nll(probs, LABELS)


def test_evaluate_gives_a_row_for_each_test_and_metric_in_order() -> None:
    tests = {
        "val": suite.Test(lambda: batches(2), LABELS),
        "test": suite.Test(lambda: [IMAGES[:2]], LABELS[:2]),
    }
    rows = suite.evaluate(predict, tests)
    assert [(row.test, row.name) for row in rows[:6]] == [
        *(("val", name) for name in ("top1", "top5", "nll", "ece", "brier")),
        ("test", "top1"),
    ]
    assert rows == suite.evaluate(predict, tests)  # a test can be read twice
    expected = suite.score(suite.predict_probs(predict, [IMAGES[:2]]), LABELS[:2])
    assert rows[5:] == [Metric("test", name, value) for name, value in expected.items()]


def test_predictions_survive_the_disk(tmp_path: Path) -> None:
    probs = suite.predict_probs(predict, batches(7))
    path = tmp_path / "student" / "predictions-val.npz"
    suite.save_predictions(path, probs, LABELS)
    found = suite.load_predictions(path)
    assert (found.probs == probs).all() and (found.labels == LABELS).all()
    assert found.probs.dtype == np.float32 and found.labels.dtype == np.int64
    assert [file.name for file in path.parent.iterdir()] == ["predictions-val.npz"]


def test_a_refused_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    probs = suite.predict_probs(predict, batches(7))
    suite.save_predictions(path, probs, LABELS)
    with pytest.raises(InputError):
        suite.save_predictions(path, probs, LABELS[:3])
    assert (suite.load_predictions(path).labels == LABELS).all()


def test_damaged_predictions_are_one_clear_line(tmp_path: Path) -> None:
    good, path = tmp_path / "good.npz", tmp_path / "predictions.npz"
    suite.save_predictions(good, suite.predict_probs(predict, batches(7)), LABELS)
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
            suite.load_predictions(path)
        assert "\n" not in str(error.value)
    with pytest.raises(RunError, match=r"missing\.npz"):
        suite.load_predictions(tmp_path / "missing.npz")
