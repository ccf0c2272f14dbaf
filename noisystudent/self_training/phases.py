"""The phases of a training: consecutive steps whose batches have the same numbers of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Rows = tuple[int, int]
"""Labelled images and pool images."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps start … stop-1.

    A CUDA graph and compiled kernels have fixed shapes. So a batch that grows does so in a few phases, which
    are whole numbers of `unlabeled_ratio`, and each phase is captured anew. Full batches with masked rows
    would need no second capture, but they would save no compute, which is the purpose of growth.

    Attributes:
        rows: images of a batch.
        drawn: images that the earlier phases have drawn.
    """

    start: int
    stop: int
    rows: Rows
    drawn: Rows

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.stop - self.start

    @property
    def end(self) -> Rows:
        """Images that this phase and the earlier ones draw."""
        labeled, pool = (
            before + self.steps * rows for before, rows in zip(self.drawn, self.rows, strict=True)
        )
        return labeled, pool

    @property
    def offsets(self) -> Rows:
        """Place of the first image of step 0 in each sequence, if all steps were of this phase."""
        labeled, pool = (
            before - self.start * rows for before, rows in zip(self.drawn, self.rows, strict=True)
        )
        return labeled, pool


def divide(steps: int, ratios: Sequence[int], tail: float, rows: Callable[[int, bool], Rows]) -> list[Phase]:
    """Divide a training into phases: one of equal length for each ratio, then the tail.

    Args:
        steps: number of steps of the training.
        ratios: `unlabeled_ratio` of each phase.
        tail: last share of the steps, on labelled images alone.
        rows: (ratio, True in the tail) -> images of a batch.

    Returns:
        Phases without those that have no step. The tail has the images per batch of the last ratio.
    """
    before_tail = steps - round(tail * steps)
    bounds = [round(before_tail * number / len(ratios)) for number in range(len(ratios) + 1)]
    phases: list[Phase] = []
    for (start, stop), ratio, in_tail in [
        *((bound, ratio, False) for bound, ratio in zip(pairwise(bounds), ratios, strict=True)),
        ((before_tail, steps), ratios[-1], True),
    ]:
        shape = rows(ratio, in_tail)
        if start == stop:
            continue
        if phases and phases[-1].rows == shape:  # a control has no pool, so its tail is no other phase
            start, drawn = phases[-1].start, phases.pop().drawn
        else:
            drawn = phases[-1].end if phases else (0, 0)
        phases.append(Phase(start, stop, shape, drawn))
    return phases


def steps_for_pool(images: float, batch: int, ratios: Sequence[int], tail: float) -> int:
    """Number of steps, tail included, that draw `images` from the pool; `batch` labelled images a step."""
    mean = sum(ratios) / len(ratios)
    return round(-(-images // (batch * mean)) / (1 - tail))
