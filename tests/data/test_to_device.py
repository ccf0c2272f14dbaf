"""Which sets have their pixels on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import labeled_folder, make, random_images, write_folder
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.data import imageset


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (151, ["labeled", "val", "test", "pool"]),
        (101, ["labeled", "val", "test"]),  # and not the pool, which would fit alone
        (80, ["labeled", "val"]),
        (26, ["test"]),
        (20, []),
    ],
)
def test_all_sets_share_one_part_of_the_memory_of_a_gpu(
    tmp_path: Path, free: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory has room for `free` images. The sets have 30, of which val is a part, 10 and 20."""
    labeled, test = labeled_folder(tmp_path / "labeled", 30), labeled_folder(tmp_path / "test", 10)
    pool = write_folder(tmp_path / "pool", random_images(20, seed=5), lambda n: f"{n:02d}.png")
    paths: dict[str, Any] = {"labeled": (str(labeled),), "test": (str(test),), "unlabeled": (str(pool),)}
    data = make(tmp_path / "out", **paths, val_fraction=0.2)
    size, moved = 3 * data.pool.fetch(np.zeros(1, int), 8)[0, 0].numel(), list[int]()

    def move(pixels: NDArray[np.uint8], _: torch.device) -> Tensor:
        moved.append(len(pixels))
        return torch.from_numpy(np.array(pixels))

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * size, 0))
    monkeypatch.setattr(imageset, "_moved", move)
    on_gpu = data.to_device(torch.device("cuda"))
    found = {name: getattr(on_gpu, name)._on_device for name in ("labeled", "val", "test", "pool")}
    assert [name for name, pixels in found.items() if pixels is not None] == expected
    assert sum(moved) <= 0.4 * free
    assert found["val"] is found["labeled"]
