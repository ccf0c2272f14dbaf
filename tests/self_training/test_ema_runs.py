"""Runs in which the student's moving average labels the pool images of each step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from noisystudent.augment import ops, plan
from noisystudent.models.registry import build_model
from noisystudent.records import Batch
from noisystudent.self_training import training as trainings
from noisystudent.self_training.noise import TrainingNoise
from noisystudent.self_training.training import Training
from noisystudent.train import step as step_module
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema import decay_at
from noisystudent.train.step import TrainStep

EMA = {"student.pseudo_label.teacher": "ema", "student.init": "teacher", "control": "none"}
FREEMATCH = EMA | {"student.pseudo_label.ema_adaptive": True, "student.pseudo_label.ema_fairness": 0.05}
PHASES = {"student.unlabeled_ratio": [1, 2], "student.train.label_tail": 0.2, "student.train.steps": 20}


def losses(out: Path) -> list[float]:
    text = (out / "iteration-1" / "student" / "metrics.jsonl").read_text()
    return [line["loss"] for line in map(json.loads, text.splitlines()) if "loss" in line]


@pytest.mark.parametrize("hard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_average_that_never_moves_gives_the_training_of_the_stored_labels(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard: bool
) -> None:
    """Of the same views: without crop and flip, the weak view is the clean one that the teacher labelled."""
    fixed = 0.123
    monkeypatch.setattr(
        step_module, "decay_at", lambda step, decay: 1.0 if decay == fixed else decay_at(step, decay)
    )
    fields = EMA | {
        "student.augment.crop": "none", "student.augment.flip": False, "student.selection.mode": "all",
        "student.train.ema_decay": fixed, "student.train.log_steps": 1, "student.train.lr": 0.5,
        "student.pseudo_label.hard": hard, "student.pseudo_label.ema_threshold": 0.0,
    }  # fmt: skip
    tiny.run(tiny.config(images, *fields.items()), tmp_path / "ema")
    stored = fields | {"student.pseudo_label.teacher": "stored"}
    tiny.run(tiny.config(images, *stored.items()), tmp_path / "stored")
    ours, theirs = losses(tmp_path / "ema"), losses(tmp_path / "stored")
    assert len(ours) == 12 and theirs[-1] < theirs[0]
    # Stored probabilities have 11 bits. Their classes are exact, so hard labels are.
    np.testing.assert_allclose(ours, theirs, atol=1e-5 if hard else 5e-4)


class Killed(BaseException):
    """Replaces SIGKILL: no code in the package may catch it."""


@pytest.mark.parametrize(
    "fields",
    [
        FREEMATCH | PHASES,
        pytest.param(FREEMATCH, marks=pytest.mark.slow),
        pytest.param(EMA | {"student.pseudo_label.ema_start": 0.5}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kills", [(6,), pytest.param((7, 11), marks=pytest.mark.slow)])
def test_killed_and_resumed_is_uninterrupted(
    images: Path, tmp_path: Path, fields: dict[str, Any], kills: tuple[int, ...]
) -> None:
    config = tiny.config(images, *fields.items())
    tiny.run(config, tmp_path / "straight")
    prepare = TrainStep.prepare
    for kill in kills:

        def killed(step: TrainStep, state: TrainState, batch: Batch, last: int = kill) -> None:
            if step.teacher is not None and state.step == last:
                raise Killed
            prepare(step, state, batch)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(TrainStep, "prepare", killed)
            tiny.run(config, tmp_path / "killed")
    tiny.run(config, tmp_path / "killed")
    straight, resumed = (
        tiny.weights(tmp_path / run, "iteration-1/student") for run in ("straight", "killed")
    )
    assert straight == resumed
    assert losses(tmp_path / "straight") == losses(tmp_path / "killed")


@pytest.mark.parametrize("crop", ["none", "pad", "inception"])
def test_the_view_is_the_same_image_cropped_and_flipped_alone(
    images: Path, finished: Path, tmp_path: Path, crop: str
) -> None:
    config, dataset = tiny.opened(images, finished)
    training = tiny.training(config, dataset, tmp_path, crop=crop)
    noise, batches = noise_of(training, 2), batches_of(training)
    clean, noised = list(batches(0, 5)), list(noise.batches(batches(0, 5), 0))
    assert [batch.pool_views is None for batch in noised] == [True, True, False, False, False]
    weak = replace(training.policy, randaugment=None, cutout=0)
    for step in (2, 3, 4):
        drawn = plan.draw(weak, training.seed, "pool/weak", step, 12, resolution=tiny.SIDE)
        view = noised[step].pool_views
        assert view is not None and torch.equal(view, ops.apply(clean[step].images[6:], drawn))
        assert not torch.equal(view, noised[step].images[6:])
    # The views change nothing else.
    for one, other in zip(noised, noise_of(training, None).batches(batches(0, 5), 0), strict=True):
        assert torch.equal(one.images, other.images) and other.pool_views is None


def noise_of(training: Training, views_from: int | None) -> TrainingNoise:
    model = build_model(training.learner.model, 3, training.resolution)
    return TrainingNoise(
        model, training.learner, training.policy, training.seed, training.resolution, views_from=views_from
    )


def batches_of(training: Training) -> Callable[[int, int], Any]:
    assert training.read_pool is not None
    pool = training.read_pool()
    return lambda start, stop: trainings.batches(training, pool, start, stop)


def test_a_student_of_another_network_starts_with_stored_labels(images: Path, tmp_path: Path) -> None:
    fields = {
        "student.pseudo_label.teacher": "ema", "student.pseudo_label.ema_start": 0.5,
        "student.pseudo_label.ema_threshold": 0.4, "student.model.name": "wrn10_1",
    }  # fmt: skip
    lines = tiny.run(tiny.config(images, *fields.items()), tmp_path / "run")
    assert any(line.startswith("student-1: wrn10_1, 12 steps of 6 labelled and 12 pool") for line in lines)


def test_the_teacher_in_the_step_repeats_no_labelling(images: Path, tmp_path: Path) -> None:
    tiny.run(tiny.config(images, ("control", "none")), tmp_path / "run")
    lines = tiny.run(tiny.config(images, *(EMA | {"student.init": "scratch"}).items()), tmp_path / "run")
    repeated = {line.split(":")[0] for line in lines if "again" in line or "superseded" in line}
    assert "student-1" in repeated and "labels-1" not in repeated and "selection-1" not in repeated
