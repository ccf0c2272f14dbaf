"""The moving average as a teacher in the step: its thresholds, its labels, and the loss that they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import LABELED, Killed, TinyNet, Training, broken_average, kill_at, make_batches
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.distributed import Group
from noisystudent.errors import RunError
from noisystudent.records import Batch
from noisystudent.run.rundir import ModelDir
from noisystudent.train import checkpoint
from noisystudent.train import step as step_module
from noisystudent.train.ema_teacher import Averages, EmaTeacher
from noisystudent.train.losses import fairness_loss, joint_loss

Make = Callable[..., Training]

CPU = torch.device("cpu")
FREEMATCH = EmaTeacher(adaptive=True, fairness=0.3, temperature=0.7)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


# --- thresholds and labels ---


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 6), st.floats(0, 1), st.floats(0.2, 2))
def test_adaptive_thresholds_are_those_of_freematch(
    seed: int, images: int, classes: int, decay: float, temperature: float
) -> None:
    """A straight-line version of arXiv 2205.07246, eq. 5 to 8, over some steps."""
    rng = np.random.default_rng(seed)
    teacher, averages = EmaTeacher(adaptive=True, temperature=temperature), Averages.start(classes, CPU)
    confidence, mean, share = 1 / classes, np.full(classes, 1 / classes), np.full(classes, 1 / classes)
    for _ in range(4):
        logits = 3 * rng.standard_normal((images, classes))
        probs = softmax(logits)
        labels = probs.argmax(axis=1)
        confidence = decay * confidence + (1 - decay) * probs.max(axis=1).mean()
        mean = decay * mean + (1 - decay) * probs.mean(axis=0)
        share = decay * share + (1 - decay) * np.bincount(labels, minlength=classes) / images
        thresholds = mean / mean.max() * confidence
        averages = averages.updated(torch.tensor(probs).float(), torch.tensor(decay), Group(), images)
        targets = teacher.targets(torch.tensor(logits), averages).numpy()
        torch.testing.assert_close(averages.thresholds().numpy(), thresholds.astype(np.float32))
        torch.testing.assert_close(averages.shares.numpy(), share.astype(np.float32))
        for row, label in enumerate(labels):
            margin = probs[row, label] - thresholds[label]
            if abs(margin) > 1e-5:  # nearer, rounding decides
                assert bool(targets[row].any()) == (margin > 0)
            if targets[row].any():
                sharp = softmax(logits / temperature)[row]
                np.testing.assert_allclose(targets[row], sharp, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 10_000), st.floats(0, 0.99), st.floats(0.1, 3))
def test_a_fixed_threshold_does_not_depend_on_the_temperature(
    seed: int, threshold: float, temperature: float
) -> None:
    logits = 3 * torch.randn(7, 4, generator=torch.Generator().manual_seed(seed))
    teacher = EmaTeacher(threshold=threshold, temperature=temperature)
    targets = teacher.targets(logits)
    kept = logits.softmax(1).amax(1) >= threshold
    assert torch.equal(targets.any(1), kept)
    assert torch.equal(targets[kept], (logits / temperature).softmax(1)[kept])


# --- the loss ---


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_row_of_zeros_has_no_gradient_and_counts_in_the_mean(hard: bool, temperature: float) -> None:
    if hard and temperature != 1:
        pytest.skip("hard labels have no temperature")
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels, targets = torch.tensor([1, 3]), torch.rand(5, 4).softmax(1)
    targets[[0, 3]] = 0

    def loss(targets: Tensor, rows: list[int]) -> Tensor:
        return joint_loss(
            logits[rows], labels, targets, smoothing=0.1, hard_pool=hard, normalization="joint",
            pool_temperature=temperature,
        )  # fmt: skip

    full, kept = loss(targets, list(range(7))), loss(targets[[1, 2, 4]], [0, 1, 3, 4, 6])
    (7 * full).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.any(dim=1), torch.tensor([1, 1, 0, 1, 1, 0, 1], dtype=torch.bool))
    torch.testing.assert_close(7 * full, 5 * kept)


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 5))
def test_the_fairness_term_is_freematchs(seed: int, images: int, classes: int) -> None:
    """A straight-line version of arXiv 2205.07246, eq. 9 to 12, with the zeros of the published code."""
    rng = np.random.default_rng(seed)
    logits, kept = 2 * rng.standard_normal((images, classes)), rng.random(images) < 0.6
    expected = softmax(rng.standard_normal((1, classes)))[0]
    value = 0.0
    if kept.any():
        probs = softmax(logits)[kept]
        share = np.bincount(probs.argmax(axis=1), minlength=classes) / len(probs)
        ratio = np.array([m / s if s > 0 else 0.0 for m, s in zip(probs.mean(axis=0), share, strict=True)])
        value = float((expected * np.log(ratio / ratio.sum() + 1e-12)).sum())
    student = torch.tensor(logits, requires_grad=True)
    loss = fairness_loss(
        student, torch.tensor(kept)[:, None].float().repeat(1, classes), torch.tensor(expected)
    )
    assert loss.item() == pytest.approx(value, rel=1e-4, abs=1e-4)
    loss.backward()
    assert student.grad is not None and student.grad.isfinite().all()
    assert not student.grad[torch.tensor(~kept)].any()


# --- trainings ---


def test_an_average_that_never_moves_gives_the_training_of_its_stored_labels(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "decay_at", lambda step, decay: 1.0)
    torch.manual_seed(0)
    first = TinyNet().eval()  # as `Training` makes it

    def labelled(start: int, stop: int) -> Iterator[Batch]:
        for batch in make_batches(start, stop):
            with torch.no_grad():
                targets = first(batch.images[LABELED:]).softmax(1)
            yield replace(batch, pool_targets=targets)

    ours = training("ema", changes={"teacher": EmaTeacher(threshold=0.0)})
    stored = training("stored", changes={"batches": labelled})
    ours.run()
    stored.run()
    for name, value in stored.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=0, atol=1e-5)
    assert not torch.equal(ours.model.state_dict()["head.weight"], first.head.weight), "it has learnt"


@pytest.mark.parametrize("kills", [(3,), (8,), (9, 16), (8, 14, 23)])
@pytest.mark.parametrize("teacher", [EmaTeacher(threshold=0.4), FREEMATCH, replace(FREEMATCH, first_step=10)])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(
    training: Make, teacher: EmaTeacher, kills: tuple[int, ...]
) -> None:
    straight = training("straight", changes={"teacher": teacher})
    averaged = straight.run()
    for step in kills:
        with pytest.raises(Killed):
            training("killed", changes={"teacher": teacher, "batches": kill_at(step)}).run()
    resumed = training("killed", changes={"teacher": teacher})
    for one, other in ((averaged, resumed.run()), (straight.model, resumed.model)):
        for (name, left), right in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(left, right), name


def test_a_snapshot_without_the_averages_is_refused(training: Make) -> None:
    with pytest.raises(Killed):
        training(changes={"batches": kill_at(9)}).run()
    with pytest.raises(RunError, match=r"averages\.confidence is absent in it"):
        training(changes={"teacher": FREEMATCH}).run()


@pytest.mark.parametrize("teacher", [EmaTeacher(threshold=0.4), EmaTeacher(adaptive=True)])
@pytest.mark.parametrize("name", ["conv.weight", "norm.running_var"])
def test_a_teacher_that_is_not_finite_stops_the_training(
    training: Make, name: str, teacher: EmaTeacher
) -> None:
    """Its labels are below every threshold then, so the loss stays finite."""
    changes: dict[str, Any] = {"evaluate": broken_average(name, float("nan")), "teacher": teacher}
    run = training(changes=changes, eval_steps=6, checkpoint_steps=7, log_steps=20)
    with pytest.raises(RunError, match="the norm of the moving average of the weights became nan"):
        run.run()
    assert checkpoint.newest(ModelDir(run.folder).checkpoints, Progress()) is None


def test_averages_that_are_not_finite_stop_the_training(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher whose logits overflow for a moment leaves thresholds that no image reaches again."""
    updated = Averages.updated

    def overflow(averages: Averages, probs: Tensor, *others: Any) -> Averages:
        return updated(averages, probs * float("nan"), *others)

    monkeypatch.setattr(Averages, "updated", overflow)
    with pytest.raises(RunError, match="the norm of the moving averages of the confidences became nan"):
        training(changes={"teacher": EmaTeacher(adaptive=True)}).run()


def test_labels_are_those_of_the_average_before_the_step(training: Make) -> None:
    seen: list[Tensor] = []

    class Watched(EmaTeacher):
        def targets(self, logits: Tensor, averages: Averages | None = None) -> Tensor:
            seen.append(logits.clone())
            return super().targets(logits, averages)

    training(
        "watched", changes={"teacher": Watched(threshold=0.0)}, schedule="constant", warmup_epochs=0.0
    ).run()
    for steps in (1, 4):
        average = training(
            f"{steps}",
            changes={"teacher": EmaTeacher(threshold=0.0)},
            schedule="constant",
            warmup_epochs=0.0,
            total_steps=steps,
        ).run()
        batch = next(make_batches(steps, steps + 1))
        with torch.no_grad():
            assert torch.equal(seen[steps], average(batch.images[LABELED:]))
