"""Phases of a training: growing batches, a tail on the labels, and a length in passes over the pool."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from noisystudent.config import TrainConfig
from noisystudent.data.loader import SelectedPool
from noisystudent.errors import InputError
from noisystudent.records import Batch
from noisystudent.self_training import training as trainings
from noisystudent.self_training.phases import divide
from noisystudent.self_training.training import Training

ratios = st.tuples(st.integers(1, 5), st.integers(0, 9)).map(lambda n: tuple(range(n[0], n[0] + n[1] + 1)))


def rows(ratio: int, tail: bool) -> tuple[int, int]:
    return (4 * (1 + ratio), 0) if tail else (4, 4 * ratio)


@given(st.integers(1, 500), ratios, st.floats(0, 0.9))
def test_phases_are_the_whole_training_in_order(steps: int, ratios: tuple[int, ...], tail: float) -> None:
    phases = divide(steps, ratios, tail, rows)
    labeled = pool = step = 0
    for phase in phases:
        assert phase.start == step and phase.steps > 0
        assert phase.drawn == (labeled, pool)
        # No image is drawn twice or left out where the size of the batches changes.
        assert phase.offsets[0] + phase.start * phase.rows[0] == labeled
        assert phase.offsets[1] + phase.start * phase.rows[1] == pool
        step, labeled, pool = (
            phase.stop, labeled + phase.steps * phase.rows[0], pool + phase.steps * phase.rows[1]
        )  # fmt: skip
    assert step == steps
    assert [phase.rows[1] for phase in phases if phase.rows[1]] == sorted(
        phase.rows[1] for phase in phases if phase.rows[1]
    )
    assert sum(phase.steps for phase in phases if not phase.rows[1]) == round(tail * steps)


@given(st.integers(100, 500), ratios)
def test_growth_is_linear(steps: int, ratios: tuple[int, ...]) -> None:
    for phase, ratio in zip(divide(steps, ratios, 0.0, rows), ratios, strict=True):
        assert phase.rows == (4, 4 * ratio)
        assert abs(phase.steps - steps / len(ratios)) <= 1


def drawn(training: Training, pool: SelectedPool | None, steps: range | None = None) -> list[Batch]:
    steps = steps or range(training.total_steps)
    return list(trainings.batches(training, pool, steps.start, steps.stop))


@pytest.fixture
def plain(images: Path, finished: Path, tmp_path: Path) -> Training:
    """A student without input noise, 6 labelled and 12 pool images a step."""
    config, dataset = tiny.opened(images, finished)
    return tiny.training(config, dataset, tmp_path, crop="none", flip=False, randaugment=None)


def changed(plain: Training, **fields: Any) -> Training:
    """The training with other fields of TrainConfig, or of `Training`."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    train = {name: fields.pop(name) for name in list(fields) if name in names}
    learner = dataclasses.replace(plain.learner, train=dataclasses.replace(plain.learner.train, **train))
    return dataclasses.replace(plain, learner=learner, **fields)


def with_targets(plain: Training) -> SelectedPool:
    """The whole pool, in which the pseudo-label of an image is its row."""
    count = len(plain.dataset.pool)
    table = np.zeros((count, 3), np.float32)
    table[:, 0] = np.arange(count)
    return SelectedPool(np.arange(count), np.ones(count, np.int32), lambda at: table[at])


def shown(batches: list[Batch], count: int) -> np.ndarray:
    """How often each row of the pool is in the batches."""
    rows = np.concatenate([batch.pool_targets[:, 0].numpy() for batch in batches]).astype(int)
    return np.bincount(rows, minlength=count)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("passes", [1, 2.5, 7])
@pytest.mark.parametrize("ratios", [(2,), (1, 2, 3)])
def test_pool_epochs_show_every_image_so_often(
    plain: Training, passes: float, ratios: tuple[int, ...], joint: bool
) -> None:
    count = len(plain.dataset.pool)
    given = changed(
        plain, steps=None, pool_epochs=passes, pool_images=count, ratios=ratios, joint=joint, label_tail=0.1
    )
    times = shown(drawn(given, with_targets(given)), count)
    assert (np.abs(times - passes) <= 1).all()
    control = drawn(given, None)
    assert len(control) == given.total_steps


def test_the_tail_is_on_labelled_images_alone(plain: Training) -> None:
    given = changed(plain, steps=20, label_tail=0.25)
    batches = drawn(given, with_targets(given))
    assert [len(batch.pool_targets) for batch in batches] == [12] * 15 + [0] * 5
    assert {len(batch.images) for batch in batches} == {18}
    assert [len(batch.labels) for batch in batches[15:]] == [18] * 5
    assert given.describe(with_targets(given)).startswith(
        "resnet8_16, 20 steps of 6 labelled and 12 pool images, at the end of 18 and 0, 16 pixels"
    )
    # A control is on labelled images alone from the start.
    assert given.phases(pool=False) == changed(plain, steps=20).phases(pool=False)


@pytest.mark.parametrize("cut", [1, 6, 7, 13, 18])
def test_batches_do_not_depend_on_where_a_training_resumes(plain: Training, cut: int) -> None:
    given = changed(plain, steps=20, label_tail=0.2, ratios=(1, 2, 3))
    pool = with_targets(given)
    whole, resumed = drawn(given, pool), drawn(given, pool, range(cut, 20))
    assert len({len(batch.images) for batch in whole}) == 3
    for one, other in zip(whole[cut:], resumed, strict=True):
        assert (one.images == other.images).all() and (one.labels == other.labels).all()
        assert (one.pool_targets == other.pool_targets).all()


def test_growing_batches_draw_the_images_of_constant_ones(plain: Training) -> None:
    """In the same order: only their number in a step differs."""
    growing, constant = changed(plain, steps=12, ratios=(1, 3)), changed(plain, steps=12)
    orders = [
        np.concatenate([batch.pool_targets[:, 0].numpy() for batch in drawn(given, with_targets(given))])
        for given in (growing, constant)
    ]
    assert np.array_equal(orders[0], orders[1])


# --- whole runs ---


def test_a_run_of_all_phases(images: Path, tmp_path: Path) -> None:
    fields = [
        ("student.unlabeled_ratio", [1, 3]), ("student.train.label_tail", 0.25),
        ("student.train.pool_epochs", 6), ("student.pseudo_label.ema_start", 0.5),
        ("student.pseudo_label.teacher", "ema"), ("student.init", "teacher"),
        ("student.selection.mode", "all"),
    ]  # fmt: skip
    lines = tiny.run(tiny.config(images, *fields), tmp_path / "run")
    # 6 passes over 42 images, on average 12 in a step, are 21 steps, which are three quarters.
    student = "28 steps of 6 labelled and 6 pool images, at the end of 24 and 0, 16 pixels"
    assert f"student-1: resnet8_16, {student}" in lines
    assert any(line.startswith("control-1: resnet8_16, 28 steps of 12 labelled") for line in lines)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("teacher.train.pool_epochs", 2, "teacher.train has pool_epochs, but only students have a pool"),
        ("student.unlabeled_ratio", [7, 1], "give one number, or the first and a larger last one"),
        ("student.unlabeled_ratio", [1, 2, 3], "give one number, or the first and a larger last one"),
        ("student.unlabeled_ratio", [], "give one number, or the first and a larger last one"),
        ("student.pseudo_label", {"ema_fairness": 0.1}, "ema_adaptive is false; set it to true"),
        ("student.pseudo_label", {"teacher": "ema", "on_the_fly": True}, "only one teacher can label"),
        ("student.train", {"steps": 2, "pool_epochs": 3}, "give only one of them"),
    ],
)
def test_what_cannot_be_is_one_line(
    images: Path, tmp_path: Path, field: str, value: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tiny.run(tiny.config(images, (field, value)), tmp_path / "run")
