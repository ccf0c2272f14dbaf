"""The most likely classes are exact, and the same from the code of a GPU and that of a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labeled_pool import column, random_pool
from scipy.special import logsumexp
from torch import Tensor

from noisystudent.pseudo_label.encode import Encoder, split_keys, top_keys, top_keys_on_gpu
from noisystudent.records import Vote

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@st.composite
def probabilities(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Rows of up to 400 classes with many equal values, 0 and subnormal numbers among them; and k."""
    classes = draw(st.integers(1, 400))
    values = st.sampled_from([0.0, 1e-42, 1e-20, 0.1, 0.1 + 2**-27, 0.5, 1.0])
    kinds = draw(st.lists(values, min_size=1, max_size=7))
    picks = np.random.default_rng(draw(st.integers(0, 99))).integers(0, len(kinds), (3, classes))
    return torch.tensor(kinds)[torch.from_numpy(picks)], draw(st.integers(1, classes))


@given(probabilities())
def test_both_forms_are_a_stable_sort(drawn: tuple[Tensor, int]) -> None:
    probs, k = drawn
    order = np.argsort(-probs.numpy(), axis=1, kind="stable")[:, :k]
    for find in (top_keys, top_keys_on_gpu):
        classes, found = split_keys(find(probs, k).numpy())
        np.testing.assert_array_equal(classes, order)
        np.testing.assert_array_equal(found, np.take_along_axis(probs.numpy(), order, 1))


def encoded(logits: Tensor) -> dict[str, np.ndarray]:
    encoder = Encoder(logits.shape[1], temperature=1.0, top=5)
    return encoder.columns(encoder.encode(lambda images: logits, torch.empty(len(logits), 0)).numpy())


@pytest.mark.parametrize("classes", [6, 300])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_are_marked_and_change_no_other(classes: int, bad: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(9, classes)).astype(np.float32))
    good = encoded(logits)
    logits[4, 2] = bad
    found = encoded(logits)
    assert np.flatnonzero(np.isnan(found["confidence"])).tolist() == [4]
    for name, values in found.items():
        np.testing.assert_array_equal(np.delete(values, 4, 0), np.delete(good[name], 4, 0), err_msg=name)


@pytest.mark.parametrize("classes", [6, 300])
@pytest.mark.parametrize("temperature", [1e-30, 0.5, 4.0, 1e9])
def test_the_temperature_changes_the_targets_alone(classes: int, temperature: float) -> None:
    """Label and confidence have the bits of temperature 1, and the targets are finite at any temperature."""
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(50, classes)).astype(np.float32) * 4)
    encoders = [Encoder(classes, temperature=t, top=5) for t in (1.0, temperature)]
    plain, other = (e.columns(e.encode(lambda _: logits, torch.empty(50, 0)).numpy()) for e in encoders)
    for name in ("label", "confidence"):
        np.testing.assert_array_equal(other[name], plain[name])
    expected = torch.softmax(logits.double() / temperature, dim=1).numpy()
    stored = other["probs"] if classes == 6 else other["top_probs"]
    if classes == 300:
        expected = -np.sort(-expected, axis=1)[:, :5]
    np.testing.assert_allclose(stored.astype(np.float64), expected, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("classes", [6, 300])
@pytest.mark.parametrize("teachers", ["one", "several", "no logits"])
def test_the_energy_is_scipys_at_temperature_1(classes: int, teachers: str) -> None:
    logits = torch.from_numpy(np.random.default_rng(2).normal(size=(50, classes)).astype(np.float32) * 9 - 20)
    agreement = torch.linspace(0, 1, 50)
    energy = None if teachers == "no logits" else logits.logsumexp(dim=1)
    predicted = logits if teachers == "one" else Vote(logits.softmax(dim=1), agreement, energy)
    encoder = Encoder(classes, temperature=4.0, top=5, voters=1 if teachers == "one" else 2)
    found = encoder.columns(encoder.encode(lambda _: predicted, torch.empty(50, 0)).numpy())
    assert list(found) == [field.name for field in encoder.fields()]
    expected = logsumexp(logits.double().numpy(), axis=1) if energy is not None else np.full(50, np.nan)
    np.testing.assert_allclose(found["energy"], expected, rtol=1e-6)
    if teachers != "one":
        np.testing.assert_array_equal(found["agreement"], agreement.numpy())


@pytest.mark.gpu
@on_gpu
@given(probabilities())
def test_a_gpu_finds_the_classes_of_the_cpu(drawn: tuple[Tensor, int]) -> None:
    probs, k = drawn
    assert torch.equal(top_keys(probs.cuda(), k).cpu(), top_keys(probs, k))


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("classes", [6, 1000])
def test_a_teacher_on_a_gpu_writes_the_labels_of_one_on_the_cpu(tmp_path: Path, classes: int) -> None:
    here, there = random_pool(classes=classes), random_pool(classes=classes)
    there.logits = there.logits.cuda()
    labels = [pool.label(tmp_path / name) for pool, name in ((here, "cpu"), (there, "gpu"))]
    found, expected = (column(each, "label") for each in labels)
    assert found == expected
    near, far = (np.array(column(each, "confidence"), np.float32) for each in labels)
    np.testing.assert_allclose(near, far, rtol=1e-6)  # softmax rounds differently
