"""Several processes see the images, the noise and the labels that one process sees."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from processes import together

from noisystudent.distributed import group
from noisystudent.models import build_model
from noisystudent.run.rundir import LabelsDir, RunDir
from noisystudent.self_training import self_train
from noisystudent.self_training import training as trainings
from noisystudent.self_training.noise import TrainingNoise

STEPS = 5
Step = dict[str, NDArray[Any]]
"""What is drawn for the rows of a step that a process has: name and part -> rows."""


def drawn(images: Path, finished: Path, folder: Path, crop: str) -> list[Step]:
    """What a student is given in its first steps: images with noise, masks, labels and targets."""
    config, dataset = tiny.opened(images, finished)
    training = tiny.training(config, dataset, folder, crop=crop)
    assert training.read_pool is not None
    model = build_model(training.learner.model, 3, training.resolution)
    noise = TrainingNoise(
        model, training.learner, training.policy, training.seed, training.resolution, views_from=0
    )
    batches = noise.batches(trainings.batches(training, training.read_pool(), 0, STEPS), 0)
    steps = []
    for step, batch in enumerate(batches):
        noise.draw(batch, step)
        noise.apply(batch.images)
        masks, labeled = model.noise._masks, len(batch.labels)
        assert masks is not None
        rows = {"images": batch.images, "features": masks.features, "paths": masks.paths.T}
        steps.append(
            {f"{name} labeled": values[:labeled].numpy().copy() for name, values in rows.items()}
            | {f"{name} pool": values[labeled:].numpy().copy() for name, values in rows.items()}
            | {"labels": batch.labels.numpy(), "targets": batch.pool_targets.numpy()}
            | {"views": noise.views(batch).numpy()}
        )
    return steps


@pytest.mark.parametrize("crop", ["pad", "inception"])
def test_all_processes_together_see_the_images_and_the_noise_of_one(
    images: Path, finished: Path, tmp_path: Path, crop: str
) -> None:
    call = partial(drawn, images, finished, tmp_path, crop)
    alone = call()
    for size in (2, 4):  # 6 labelled images are not a multiple of 4
        parts = together(size, call)
        for step in range(STEPS):
            joined = {name: np.concatenate([part[step][name] for part in parts]) for name in alone[step]}
            for name, rows in alone[step].items():
                assert np.array_equal(joined[name], rows), (size, step, name)


def predicted(images: Path, finished: Path, sizes: tuple[int, ...] = (5,)) -> NDArray[np.float32]:
    """Probabilities of the teacher for val; a process has the batch size of its number, or the last one."""
    config, dataset = tiny.opened(images, finished)
    folder = RunDir(finished).iteration(0).model("teacher").path
    training = replace(tiny.training(config, dataset, folder), read_pool=None)
    return replace(trainings.predictor(training), batch_size=sizes[min(group().rank, len(sizes) - 1)]).probs(
        dataset.val
    )


def test_each_process_has_the_predictions_that_one_makes(images: Path, finished: Path) -> None:
    call = partial(predicted, images, finished)
    alone = call()
    for size in (2, 4):  # 3 batches: a process has two, or none
        for shared in together(size, call):
            assert np.array_equal(shared, alone)


def test_processes_of_unequal_batch_sizes_leave_out_no_image(images: Path, finished: Path) -> None:
    """Each GPU measures its own batch size."""
    alone = predicted(images, finished, (2,))
    for sizes in ((2, 4), (4, 2)):
        for shared in together(2, predicted, images, finished, sizes):
            assert np.array_equal(shared, alone)


def run(images: Path, out: Path) -> None:
    self_train(tiny.config(images), out)


@pytest.mark.parametrize("size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])  # there are 3 parts
def test_labels_and_selection_of_equal_teachers_are_equal_bit_for_bit(
    images: Path, finished: Path, tmp_path: Path, size: int
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "iteration-1")
    together(size, run, images, out)
    alone, shared = RunDir(finished).iteration(1), RunDir(out).iteration(1)
    assert tiny.digest(shared.selection) == tiny.digest(alone.selection)
    labels = {path.name: tiny.digest(path) for path in LabelsDir(alone.labels).parts()}
    assert {path.name: tiny.digest(path) for path in LabelsDir(shared.labels).parts()} == labels
    assert len(labels) == 3
    logs = ["run.log", *(f"run.rank-{rank}.log" for rank in range(1, size))]
    assert sorted(path.name for path in out.glob("run*.log")) == logs
