"""Sizes of val: what a number of images can show, by simulation, and what a run says about it."""

from __future__ import annotations

import numpy as np
import pytest

from noisystudent.metrics.paired import mcnemar
from noisystudent.metrics.power import LEAST_IMAGES, POWER, detectable, images_needed, too_small


@pytest.mark.parametrize("differing, images", [(0.2, 1_000), (0.05, 4_000)])
def test_a_detectable_difference_is_found_as_often_as_it_says(differing: float, images: int) -> None:
    gain, rng = detectable(differing, images, 0.95), np.random.default_rng(0)
    shares = [(differing + gain) / 2, (differing - gain) / 2, 1 - differing]
    drawn = rng.multinomial(images, shares, size=1_000)
    found = np.mean([mcnemar(int(wins), int(losses)) < 0.05 for wins, losses, _ in drawn])
    assert abs(found - POWER) < 0.05


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_needed_images_detect_the_difference_and_one_fewer_does_not(level: float) -> None:
    needed = images_needed(0.2, 0.03, level)
    assert detectable(0.2, needed, level) <= 0.03 < detectable(0.2, needed - 1, level)


def test_a_small_val_is_named_with_the_difference_that_it_can_show() -> None:
    assert too_small(images_needed(0.2, 0.05, 0.95), 0.95, folds=False) is None
    line = too_small(100, 0.95, folds=False)
    assert line is not None and line.startswith("val has 100 images: ") and "13 points or more" in line
    assert "nothing is chosen" not in line
    few = too_small(LEAST_IMAGES - 1, 0.95, folds=False)
    assert few is not None and "on fewer than 50 images nothing is chosen" in few and "--folds 5" in few
    with_folds = too_small(LEAST_IMAGES - 1, 0.95, folds=True)
    assert with_folds is not None and "nothing is chosen" in with_folds and "--folds" not in with_folds
