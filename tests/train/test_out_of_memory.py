from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from tiny_training import LABELED, POOL, Killed, TinyNet, Training, kill_at
from torch import Tensor, nn

from noisystudent.train.ema_teacher import Averages, EmaTeacher

Make = Callable[..., Training]


class SmallMemory(TinyNet):
    """Without batch norm, and with memory for some images at once."""

    def __init__(self, most: int) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.norm: nn.Module = nn.Identity()  # type: ignore[assignment]
        self._most = most

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self._most:
            raise torch.OutOfMemoryError(f"{len(images)} images do not fit")
        return super().forward(images)


def trained(training: Make, name: str, most: int, **options: Any) -> tuple[dict[str, Tensor], list[str]]:
    progress = tiny.Remembered()
    no_mask = {"draw_noise": lambda _batch, _step: None}
    one = training(name, progress=progress, total_steps=12, changes=no_mask, clip_norm=1.0, **options)
    one.model = SmallMemory(most)
    return dict(one.run().state_dict()), progress.lines


@pytest.mark.parametrize("most", [8, 4])
def test_a_batch_that_does_not_fit_is_computed_in_parts_with_the_same_step(training: Make, most: int) -> None:
    whole, silent = trained(training, "whole", LABELED + POOL)
    divided, lines = trained(training, "divided", most)
    for name, value in whole.items():
        torch.testing.assert_close(divided[name], value, rtol=1e-5, atol=1e-5)
    assert silent == []
    assert len(lines) == {8: 1, 4: 2}[most]
    assert "does not fit into the memory" in lines[-1] and "as with train.accumulate" in lines[-1]


def averages_of(one: Training) -> list[Averages]:
    """Those that a teacher with adaptive thresholds labels by, each time it labels in three steps."""
    seen: list[Averages] = []

    class Watched(EmaTeacher):
        def targets(self, logits: Tensor, averages: Averages | None = None) -> Tensor:
            assert averages is not None
            seen.append(Averages(*(value.clone() for value in averages)))
            return super().targets(logits, averages)

    one.changes |= {"draw_noise": lambda _batch, _step: None, "teacher": Watched(adaptive=True)}
    one.run()
    return seen


def test_a_batch_that_does_not_fit_counts_once_in_the_averages_of_its_teacher(training: Make) -> None:
    """It is labelled before the forward pass that fails, and again for its parts."""
    whole, divided = training("whole", total_steps=3), training("divided", total_steps=3)
    whole.model, divided.model = SmallMemory(LABELED + POOL), SmallMemory(8)
    first, *others = averages_of(whole)
    torch.testing.assert_close(averages_of(divided), [first, first, *others], rtol=1e-5, atol=1e-5)


class LateMemory(TinyNet):
    """Batch norm has seen the batch when memory is short."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if len(images) > 8:
            raise torch.OutOfMemoryError(f"{len(images)} images do not fit")
        return logits


@pytest.mark.parametrize("killed", [False, True])
def test_what_batch_norm_saw_of_a_batch_that_did_not_fit_is_forgotten(training: Make, killed: bool) -> None:
    """The training is that of `accumulate: 2`, also when a resumed one has memory for whole batches."""
    no_mask = {"draw_noise": lambda _batch, _step: None}
    expected = training("given", changes=dict(no_mask), accumulate=2).run()
    if killed:
        first = training("late", changes={**no_mask, "batches": kill_at(9)}, checkpoint_steps=4)
        first.model = LateMemory()
        with pytest.raises(Killed):
            first.run()
    one = training("late", changes=dict(no_mask), checkpoint_steps=4)
    if not killed:
        one.model = LateMemory()
    found = one.run()
    for (name, value), same in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(value, same), name


def test_without_memory_for_two_images_the_error_is_that_of_memory(training: Make) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="do not fit"):
        trained(training, "none", 1)
