"""FGSM and PGD: the closed form of a linear model, the test vector V12, and what no attack may do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from noisystudent.config import ModelConfig
from noisystudent.errors import InputError
from noisystudent.inference.predictor import predict_probs
from noisystudent.models.registry import build_model
from noisystudent.robustness import attacks
from noisystudent.robustness.attacks import RandomStart, fgsm_sweep, pgd

SIDE, CLASSES = 6, 4
SETTINGS = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
bounds = st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 255.0])


def batch(seed: int, count: int = 5) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)
    return torch.from_numpy(images), torch.from_numpy(rng.integers(0, CLASSES, count))


def network(seed: int = 0) -> nn.Module:
    """A small net of pixels in 0 to 255 that is curved, so that gradients differ from image to image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * (SIDE - 2) ** 2, CLASSES)
        )

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, images: Tensor) -> Tensor:
            output: Tensor = self.layers(images / 255)
            return output

    return Scaled().eval()


def linear(images: Tensor) -> Tensor:
    """Two classes; the difference of their logits is linear in the pixels, by `slopes`."""
    score = (images * slopes()).sum(dim=(1, 2, 3)) / 255
    return torch.stack([score, -score], dim=1)


def slopes() -> Tensor:
    row = torch.arange(3 * SIDE * SIDE, dtype=torch.float32) - 50  # negative, one zero, positive
    return (row / 100).reshape(3, SIDE, SIDE)


def loss(logits: attacks.Logits, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return functional.cross_entropy(logits(images), labels, reduction="none")


def fgsm(logits: attacks.Logits, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    return fgsm_sweep(logits, images, labels, (eps,))[0]


def differing(first: Tensor, second: Tensor) -> float:
    """Share of pixels; a gradient of almost 0 may change its sign with the batch, as sums are rounded."""
    return float(((first - second).abs() > 1e-4).float().mean())


# --- V12 ---

WEIGHT = torch.tensor([[1, -2, 3], [2, 1, -1], [-1, 2, 0.5]])
POINT = 255 * torch.tensor([0.5, 0.75, 0.05]).reshape(1, 3, 1, 1)


def softmax_model(images: Tensor) -> Tensor:
    return (images / 255).flatten(1) @ WEIGHT.T


@pytest.mark.parametrize(
    ("eps", "point", "logits", "label"),
    [
        (16, (0.4372549020, 0.8127450980, 0.1127450980), (-0.85, 1.5745098039, 1.2446078431), 1),
        (64, (0.2490196078, 1.0, 0.3009803922), (-0.8480392157, 1.1970588235, 1.9014705882), 2),
    ],
)
def test_v12(eps: float, point: tuple[float, ...], logits: tuple[float, ...], label: int) -> None:
    target = torch.tensor([1])
    assert softmax_model(POINT)[0].tolist() == pytest.approx([-0.85, 1.7, 1.025], abs=1e-6)
    steps = pgd(softmax_model, POINT, target, eps, 10, step_size=eps / 4)
    for found in (fgsm(softmax_model, POINT, target, eps), steps):
        assert (found / 255).flatten().tolist() == pytest.approx(point, abs=1e-6)
        output = softmax_model(found)[0]
        assert output.tolist() == pytest.approx(logits, abs=1e-6)
        assert int(output.argmax()) == label


# --- closed form, bounds, degenerate equalities ---


@SETTINGS
@given(seeds, bounds)
def test_a_linear_model_is_attacked_in_closed_form(seed: int, eps: float) -> None:
    images, labels = batch(seed)
    labels = labels % 2
    toward = torch.where(labels == 0, -1.0, 1.0)[:, None, None, None] * slopes().sign()
    expected = (images.float() + eps * toward).clamp(0, 255)
    assert torch.equal(fgsm(linear, images, labels, eps), expected)
    assert torch.equal(pgd(linear, images, labels, eps, 4, step_size=max(eps, 1.0)), expected)


@SETTINGS
@given(seeds, bounds, st.booleans(), st.integers(1, 4))
def test_no_attack_leaves_the_bound_or_the_range(seed: int, eps: float, start: bool, steps: int) -> None:
    images, labels = batch(seed)
    before = images.clone(), labels.clone()
    random_start = RandomStart(seed, range(len(images))) if start else None
    model = network()
    for found in (
        fgsm(model, images, labels, eps),
        pgd(model, images, labels, eps, steps, random_start=random_start),
    ):
        assert found.dtype == torch.float32 and found.shape == images.shape and not found.requires_grad
        assert float((found - images.float()).abs().max()) <= eps
        assert float(found.min()) >= 0 and float(found.max()) <= 255
    assert torch.equal(images, before[0]) and torch.equal(labels, before[1])


@SETTINGS
@given(seeds)
def test_no_bound_is_the_identity(seed: int) -> None:
    images, labels = batch(seed)
    assert torch.equal(fgsm(network(), images, labels, 0), images.float())
    start = RandomStart(seed, range(len(images)))
    assert torch.equal(pgd(network(), images, labels, 0, 3, random_start=start), images.float())


@SETTINGS
@given(seeds, bounds)
def test_one_full_step_of_pgd_is_fgsm(seed: int, eps: float) -> None:
    images, labels = batch(seed)
    one = pgd(network(), images, labels, eps, 1, step_size=max(eps, 1e-3))
    assert torch.equal(one, fgsm(network(), images, labels, eps))


def test_the_sweep_is_fgsm_at_each_bound() -> None:
    images, labels = batch(0)
    found = fgsm_sweep(network(), images, labels)
    assert len(found) == len(attacks.FGSM_SWEEP) == 4
    for eps, one in zip(attacks.FGSM_SWEEP, found, strict=True):
        assert torch.equal(one, fgsm(network(), images, labels, eps))


def test_the_loss_rises_and_pgd_raises_it_more() -> None:
    images, labels = batch(1, count=64)
    model = network()
    clean = loss(model, images.float(), labels).mean()
    once = loss(model, fgsm(model, images, labels, 8), labels).mean()
    often = loss(model, pgd(model, images, labels, 8, 10), labels).mean()
    assert clean < once <= often + 1e-6
    begun = RandomStart(0, range(64))
    assert loss(model, pgd(model, images, labels, 8, 10, random_start=begun), labels).mean() > clean


# --- randomness, batches, modes ---


def test_a_random_start_belongs_to_its_row() -> None:
    images, labels = batch(2)
    model = network()
    rows = [7, 3, 11, 0, 5]
    whole = pgd(model, images, labels, 8, 2, random_start=RandomStart(1, rows))
    parts = [
        pgd(model, images[i : i + 1], labels[i : i + 1], 8, 2, random_start=RandomStart(1, [row]))
        for i, row in enumerate(rows)
    ]
    assert differing(whole, torch.cat(parts)) < 0.01
    assert torch.equal(whole, pgd(model, images, labels, 8, 2, random_start=RandomStart(1, rows)))
    for other in (RandomStart(2, rows), RandomStart(1, [0, 1, 2, 3, 4]), None):
        assert not torch.equal(whole, pgd(model, images, labels, 8, 2, random_start=other))


def test_a_random_start_fills_the_bound() -> None:
    images = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)

    def flat(pixels: Tensor) -> Tensor:
        return 0 * pixels.sum(dim=(1, 2, 3))[:, None] + torch.zeros(2)

    found = pgd(flat, images, torch.zeros(4, dtype=torch.int64), 8, 1, random_start=RandomStart(0, range(4)))
    moved = (found - 128).flatten()
    assert float(moved.abs().max()) <= 8
    assert abs(float(moved.mean())) < 0.2
    assert float(moved.std()) == pytest.approx(16 / math.sqrt(12), rel=0.02)


def test_an_image_is_attacked_alike_in_any_batch() -> None:
    images, labels = batch(3, count=6)
    model = network()
    whole = fgsm(model, images, labels, 4)
    alone = [fgsm(model, images[i : i + 1], labels[i : i + 1], 4) for i in range(6)]
    assert differing(whole, torch.cat(alone)) < 0.01


def test_neither_the_model_nor_the_callers_mode_matters() -> None:
    images, labels = batch(4)
    model = network()
    seen: list[tuple[torch.dtype, bool]] = []

    def watched(pixels: Tensor) -> Tensor:
        output: Tensor = model(pixels)
        seen.append((output.dtype, torch.is_inference_mode_enabled()))
        return output

    expected = fgsm(model, images, labels, 8)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = images.clone(), labels.clone()
        assert torch.equal(fgsm(watched, *inside, 8), expected)
        pgd(watched, *inside, 8, 2, random_start=RandomStart(0, range(5)))
    assert set(seen) == {(torch.float32, False)}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_classifier_is_attacked_through_its_normalization() -> None:
    model = build_model(ModelConfig(name="test_efficientnet"), CLASSES, 32).eval()
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8))
    labels = torch.arange(6) % CLASSES
    torch.testing.assert_close(model(images), model(images.float()))
    attacked = pgd(model, images, labels, 8, 3)
    assert (loss(model, attacked, labels) > loss(model, images, labels)).all()
    # As the suite reads it: batches of attacked images, made while it holds gradients off.
    probs = predict_probs(model, (fgsm(model, images, labels, eps) for eps in (0.0, 8.0)))
    before, after = probs[:6], probs[6:]
    np.testing.assert_allclose(before, predict_probs(model, [images]), atol=1e-6)
    own = np.arange(6), labels.numpy()
    assert after[own].mean() < before[own].mean()


# --- refusals ---


def no_gradient(images: Tensor) -> Tensor:
    with torch.no_grad():
        return linear(images)


def rounded(images: Tensor) -> Tensor:
    """Learned weights, yet nothing flows back to the pixels."""
    return images.detach().mean(dim=(1, 2, 3))[:, None] * torch.ones(2, requires_grad=True)


@pytest.mark.parametrize("model", [no_gradient, rounded])
def test_a_model_without_gradients(model: attacks.Logits) -> None:
    images, labels = batch(0)
    with pytest.raises(InputError, match=r"no gradient with respect to its images \(an ONNX file"):
        fgsm(model, images, labels % 2, 8)
    with pytest.raises(InputError, match="FGSM and PGD need a PyTorch model"):
        pgd(model, images, labels % 2, 8)


def test_a_model_in_training_mode() -> None:
    images, labels = batch(0)
    with pytest.raises(InputError, match="in training mode"):
        fgsm(network().train(), images, labels, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -1}, "eps is -1"),
        ({"eps": math.nan}, "eps is nan"),
        ({"eps": math.inf}, "eps is inf"),
        ({"steps": 0}, "number of PGD steps is 0; it must be at least 1"),
        ({"step_size": 0}, "step size of PGD is 0"),
        ({"step_size": -2.0}, "step size of PGD is -2.0"),
        ({"random_start": RandomStart(0, [1, 2])}, "has 2 rows for 5 images; give one each"),
        ({"labels": torch.full((5,), -1)}, "labels run from -1 to -1; with 4 classes"),
        ({"labels": torch.full((5,), 4)}, "labels run from 4 to 4"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"logits have shape \(5, 4\) and labels \(3,\)"),
    ],
)
def test_wrong_calls(change: dict[str, object], message: str) -> None:
    images, labels = batch(0)
    call: dict[str, object] = {"labels": labels, "eps": 8.0, **change}
    with pytest.raises(InputError, match=message):
        pgd(network(), images, **call)  # type: ignore[arg-type]
    if {"eps", "labels"} & set(change):
        with pytest.raises(InputError, match=message):
            fgsm(network(), images, **call)  # type: ignore[arg-type]
