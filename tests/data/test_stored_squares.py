"""Views of a set with stored pixels show what those of the files show, whatever side a network has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_files import smooth
from PIL import Image

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.data.loader import joint_batches, requested_batches
from noisystudent.data.prepare import open_dataset, prepare
from noisystudent.data.sources import open_sources
from noisystudent.records import Batch
from noisystudent.run.rundir import DataDir

STORED, CPU = 224, torch.device("cpu")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageSet, ImageSet]:
    """The same images, stored and streamed."""
    root = tmp_path_factory.mktemp("images")
    for label in ("one", "two"):
        (root / "labeled" / label).mkdir(parents=True)
        for number in range(4):
            picture = Image.fromarray(smooth(480, 600, seed=number + 10 * (label == "two")))
            picture.save(root / "labeled" / label / f"{number}.png")
    opened = []
    for plane in ("resident", "streamed"):
        config = DataConfig(
            labeled=(str(root / "labeled"),), resolution=STORED, plane=plane, workers=0, near_duplicates="off"
        )
        prepare(config, open_sources(config), DataDir(root / plane), 0, Progress())
        opened.append(open_dataset(DataDir(root / plane), config, open_sources(config)).labeled)
    stored, streamed = opened
    assert stored.resident and not streamed.resident
    return stored, streamed


@pytest.mark.parametrize("side", [128, 224, 256, 320])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_no_smaller_view_are_those_of_the_files(
    sets: tuple[ImageSet, ImageSet], side: int, workers: int
) -> None:
    """A clean view below 224 pixels shows a border that the stored square lacks."""
    rows = np.arange(len(sets[0]))
    clean, joint = list[torch.Tensor](), list[Batch]()
    for images in sets:
        clean += requested_batches(images, iter([rows]), resolution=side, device=CPU, workers=workers)
        joint += joint_batches(
            images,
            None,
            None,
            labeled_batch=4,
            pool_batch=0,
            resolution=side,
            seed=0,
            start=0,
            stop=1,
            device=CPU,
            workers=workers,
        )
    assert torch.equal(*clean)
    assert torch.equal(joint[0].images, joint[1].images)
