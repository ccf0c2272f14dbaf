"""Several teachers as one: the average is that of their own answers, whatever their order and resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from noisystudent.config import ModelConfig
from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.inference.joint import JointBatch, JointPredictor, Member, joint_batches
from noisystudent.inference.predictor import Predictor
from noisystudent.models.registry import build_model

CPU = torch.device("cpu")
SIDES = (16, 24, 16)


@pytest.fixture(scope="module")
def pool(images: Path, finished: Path) -> ImageSet:
    return tiny.opened(images, finished)[1].pool


@pytest.fixture(scope="module")
def models() -> list[Predictor]:
    """Random networks, whose logits are scaled so that they have opinions."""
    nets = [build_model(ModelConfig(name="resnet8_16"), 3, side, seed=n) for n, side in enumerate(SIDES)]
    return [Predictor(models=(net.eval(),), classes=tiny.CLASSES, device=CPU, batch_size=8) for net in nets]


def voted(
    models: Sequence[Predictor | NDArray[np.float32]],
    weights: Sequence[float],
    pool: ImageSet,
    orders: Sequence[torch.Tensor | None],
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    sides = sorted({model.resolution for model in models if isinstance(model, Predictor)})
    members = tuple(
        Member(model, sides.index(model.resolution) if isinstance(model, Predictor) else 0, order)
        for model, order in zip(models, orders, strict=True)
    )
    joint = JointPredictor(members=members, weights=tuple(weights), device=CPU, batch_size=8)
    ready, size = joint.prepared(len(pool), 16, progress=Progress())
    assert size == 8
    firsts = {model.resolution: model for model in models if isinstance(model, Predictor)}
    streams = [partial(firsts[side].requested_views, pool) for side in sides]
    requests = (np.arange(at, min(at + size, len(pool))) for at in range(0, len(pool), size))
    votes = [ready(batch) for batch in joint_batches(streams, requests)]
    agreement = [vote.agreement for vote in votes if vote.agreement is not None]
    probs = torch.cat([vote.probs for vote in votes]).numpy()
    return probs, torch.cat(agreement).numpy() if agreement else None


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.permutations([0, 1, 2, 3]), seed=st.integers(0, 99))
def test_the_average_is_numpys(models: list[Predictor], pool: ImageSet, chosen: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    stored = rng.dirichlet(np.ones(3), len(pool)).astype(np.float32)
    order = torch.from_numpy(rng.permutation(3))
    answers = [model.probs(pool)[:, order.numpy()] for model in models] + [stored]
    weights = rng.dirichlet(np.ones(4)).tolist()
    everything: list[tuple[Predictor | NDArray[np.float32], torch.Tensor | None]] = [
        *((model, order) for model in models), (stored, None)
    ]  # fmt: skip
    probs, agreement = voted(
        [everything[n][0] for n in chosen], weights, pool, [everything[n][1] for n in chosen]
    )
    mean = sum(w * answers[n].astype(float) for w, n in zip(weights, chosen, strict=True))
    assert np.abs(probs - mean).max() < 1e-6
    votes = [answers[n].argmax(axis=1) == probs.argmax(axis=1) for n in chosen]
    assert agreement == pytest.approx(np.mean(votes, axis=0))


def test_a_teacher_twice_is_the_teacher_once(models: list[Predictor], pool: ImageSet) -> None:
    once, alone = voted([models[0]], [1.0], pool, [None])
    assert alone is None
    for count in (2, 3, 5):
        probs, agreement = voted([models[0]] * count, [1 / count] * count, pool, [None] * count)
        assert np.abs(probs - once).max() < 1e-6
        assert agreement is not None and (agreement == 1).all()


def test_a_diverged_teacher_is_not_hidden_by_the_others(models: list[Predictor]) -> None:
    """A softmax hides a logit of minus infinity."""
    sick = replace(models[0], temperature=1.0)
    good = Member(np.full((2, 3), 1 / 3, np.float32))

    class Diverged(Predictor):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 1.0, -torch.inf], [0.0, 1.0, 2.0]])

    member = Member(Diverged(models=sick.models, classes=(), device=CPU))
    joint = JointPredictor(members=(good, member), weights=(0.5, 0.5), device=CPU, batch_size=2)
    vote = joint(JointBatch(np.arange(2), (torch.zeros(2, 3, 16, 16, dtype=torch.uint8),)))
    assert vote.probs.isnan().any(dim=1).tolist() == [True, False]


def test_the_energy_is_the_mean_of_those_with_logits(models: list[Predictor], pool: ImageSet) -> None:
    """Of several views too, whose softmax is the mean of their probabilities."""
    stored = np.full((len(pool), 3), 1 / 3, np.float32)
    same = [models[0], models[2]]  # of one resolution
    views = torch.cat(list(models[0].views(pool)))
    logits = [model(views) for model in same]
    expected = torch.stack([each.logsumexp(dim=1) for each in logits]).mean(dim=0)
    members = (Member(stored), *(Member(model) for model in same))
    joint = JointPredictor(members=members, weights=(0.2, 0.3, 0.5), device=CPU, batch_size=8)
    energy = joint(JointBatch(np.arange(len(pool)), (views,))).energy
    assert energy is not None and energy.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    alone = replace(joint, members=members[:1], weights=(1.0,))
    assert alone(JointBatch(np.arange(len(pool)), (views,))).energy is None

    flipped = replace(models[0], flip=True)
    mirrored = models[0](views.flip(3))
    both = flipped(views)
    mean = (logits[0].softmax(dim=1) + mirrored.softmax(dim=1)) / 2
    torch.testing.assert_close(both.softmax(dim=1), mean, rtol=1e-5, atol=1e-6)
    average = (logits[0].logsumexp(dim=1) + mirrored.logsumexp(dim=1)) / 2
    torch.testing.assert_close(both.logsumexp(dim=1), average, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(flipped.energies(pool), average.numpy(), rtol=1e-4, atol=1e-5)
