"""Probabilities of all images of a test: order, batches, precision, output that is not finite."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from noisystudent.errors import InputError, RunError
from noisystudent.inference.predictor import predict_probs

IMAGES = torch.arange(7 * 3 * 2 * 2, dtype=torch.uint8).reshape(7, 3, 2, 2)


def predict(images: Tensor) -> Tensor:
    """Logits (B, 4) that differ for every image."""
    return images.float().mean(dim=(1, 2, 3))[:, None] * torch.tensor([0.01, -0.02, 0.03, 0.0])


def batches(size: int) -> Iterator[Tensor]:
    for start in range(0, len(IMAGES), size):
        yield IMAGES[start : start + size]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_probabilities_do_not_depend_on_the_batch_size(size: int) -> None:
    found = predict_probs(predict, batches(size))
    assert found.dtype == np.float32 and found.shape == (7, 4)
    np.testing.assert_allclose(found, predict(IMAGES).softmax(dim=1).numpy(), rtol=1e-6)


def test_half_precision_logits_become_float32_probabilities() -> None:
    found = predict_probs(lambda images: predict(images).bfloat16(), batches(7))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_no_gradient_is_recorded() -> None:
    weight = torch.ones(4, requires_grad=True)
    predict_probs(lambda images: predict(images) * weight, batches(7))
    assert weight.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_output_that_is_not_finite_names_the_images(bad: float) -> None:
    def broken(images: Tensor) -> Tensor:
        logits = predict(images)
        logits[images[:, 0, 0, 0] == IMAGES[5, 0, 0, 0], 1] = bad
        return logits

    with pytest.raises(RunError, match="not finite on images 3 to 5"):
        predict_probs(broken, batches(3))


def test_no_images_is_an_error() -> None:
    with pytest.raises(InputError, match="no images"):
        predict_probs(predict, [])
