"""With `student.pool_window` images that are drawn together are neighbours in the pool."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from noisystudent.data import sampler
from noisystudent.data.loader import SelectedPool
from noisystudent.data.sampler import Repeated, Sampler
from noisystudent.self_training import pool

WINDOW = 4


def test_the_images_of_a_window_are_neighbours_in_the_pool(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_BLOCK", WINDOW)
    given: list[SelectedPool] = []

    def read(*arguments: Any) -> SelectedPool:
        given.append(SelectedPool(*arguments))
        return given[-1]

    monkeypatch.setattr(pool, "SelectedPool", read)
    shutil.copytree(finished, out := tmp_path / "run")
    tiny.run(tiny.config(images, ("student.pool_window", WINDOW)), out)
    (selected,) = given
    expanded = Repeated(selected.repeats)
    assert len(expanded) > 4 * WINDOW
    windows = Sampler(len(expanded), WINDOW, 0, "pool", window=selected.window)
    for step in range(len(expanded) // WINDOW):
        drawn = selected.rows[expanded[windows.at(step)]]
        places = np.unique(np.searchsorted(np.sort(selected.rows), drawn))
        stretches = 1 + np.count_nonzero(np.diff(places) > 1)
        assert stretches <= 2, "a window has parts of two blocks at most"
