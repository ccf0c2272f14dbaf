"""Robustness of every model of a run: its predictions on corrupted, perturbed and attacked images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.errors import RunError
from noisystudent.evaluation.options import Options
from noisystudent.evaluation.test_images import generate
from noisystudent.robustness.corruptions import EXTRA_CORRUPTIONS, Frost, find_frost, nearest_side
from noisystudent.robustness.images import LabeledBatch
from noisystudent.robustness.results import Results, load_results, save_results, stratified
from noisystudent.robustness.suite import Plan, run_tests
from noisystudent.robustness.summary import Summary, differences, ratios, summarize
from noisystudent.run.aside import put_aside
from noisystudent.run.fingerprint import fingerprint
from noisystudent.run.rundir import CONTROLS
from noisystudent.runtime import batch_size_for
from noisystudent.self_training import gallery
from noisystudent.self_training.context import Context
from noisystudent.self_training.training import Training, predictor

Key = tuple[int, str]
"""(iteration, role) of a model."""

Summaries = dict[Key, Summary]
"""Key of a model -> summary of its results."""

# Largest batch size. Attacks need gradients, so they take more memory per image than predictions.
_BATCH = 128
# Version of robustness.npz. Increase it when a test changes, so that older results are not read.
_FORMAT = 3
# Severities of the thumbnails, and their largest side in pixels: 58 of them take 0.3 MB at most.
_SHOWN = (1, 3, 5)
_SIDE = 64


def measure(context: Context, trainings: dict[Key, Training]) -> Summaries:
    """Return the robustness of each model on test, or on val if there is no test.

    The results of a model are saved as robustness.npz beside its weights after each part of a test, so an
    interrupted call loses at most one part.

    Args:
        context: the run; `evaluate.tests` lists the tests.
        trainings: finished training of each model.

    Returns:
        For each model, the result of `summarize` and these keys. "images": number of images. "constants": the
            side in pixels that the constants of the corruptions were published for. "frost": True if the
            corruption frost was measured. "to_teacher": `ratios` to the first teacher. "minus": {name: {test:
            `difference`}} to each control and to "teacher". Empty if no test is configured.

    Raises:
        Stopped: a signal was received. Another call resumes.
    """
    config = context.config.evaluate
    if not config.tests:
        return {}
    _, images = context.judged
    rows = _rows(context, images)
    plan = Plan(
        tests=("clean", *config.tests),
        severities=config.severities,
        seed=context.config.seed,
        ece_bins=config.ece_bins,
    )
    frost = find_frost(None if config.frost is None else Path(config.frost))
    summaries: Summaries = {}
    results: dict[Key, Results] = {}
    # Models of one resolution share the generated images; generating them takes longer than predicting.
    for side in sorted({training.resolution for training in trainings.values()}):
        group = {key: training for key, training in trainings.items() if training.resolution == side}
        about: dict[str, Any] = {"constants": nearest_side(side), "frost": frost is not None}
        about["images"] = len(rows)
        own = _results(context, group, rows, plan, frost)
        results |= own
        summaries |= {key: summarize(one, config.level) | about for key, one in own.items()}
    for key, own_summary in summaries.items():
        rivals = {role: (key[0], role) for role in CONTROLS.values()} | {"teacher": (0, "teacher")}
        own_summary["to_teacher"] = ratios(own_summary, summaries[rivals["teacher"]])
        own_summary["minus"] = {
            name: differences(results[key], results[rival], config.level)
            for name, rival in rivals.items()
            if rival in results and rival != key
        }
    return summaries


def thumbnails(context: Context, training: Training) -> dict[str, Any]:
    """Return one test image under each corruption that was measured, for the report.

    It is the first image of the tests, with the random numbers that the models were tested with.

    Args:
        context: the run.
        training: finished training; its resolution is that of the image.

    Returns:
        {"clean": JPEG in base64, "corrupted": {name: {severity: JPEG}}} at the severities 1, 3 and 5. Empty
            if no corruption is tested.
    """
    config, (_, images) = context.config.evaluate, context.judged
    if not {"c", "c-extra"} & {*config.tests}:
        return {}
    first = _rows(context, images)[:1]
    frost = find_frost(None if config.frost is None else Path(config.frost))
    made = generate(predictor(training), images, first, Options(seed=context.config.seed), frost)
    names = [*(made.corruptions if "c" in config.tests else ())]
    names += EXTRA_CORRUPTIONS if "c-extra" in config.tests else ()

    def shown(batches: Iterable[LabeledBatch]) -> str:
        ((pixels, _),) = batches
        return gallery.encoded(pixels[0], _SIDE)

    copies = {
        name: {str(severity): shown(made.corrupted(name, severity)) for severity in _SHOWN} for name in names
    }
    return {"clean": shown(made.clean()), "corrupted": copies}


def _rows(context: Context, images: ImageSet) -> NDArray[np.int64]:
    """Rows of the images that the tests are made on."""
    return stratified(images.labels, context.config.evaluate.sample or len(images), context.config.seed)


def _results(
    context: Context, group: dict[Key, Training], rows: NDArray[np.int64], plan: Plan, frost: Frost | None
) -> dict[Key, Results]:
    """Return the results of models of the same resolution; those on disk are read, the others computed."""
    side, (_, images) = next(iter(group.values())).resolution, context.judged
    # Results on disk are used only if they were computed on the same images with the same settings. The
    # random numbers of an image depend on its row.
    which = (images.content_hash[rows].tobytes().hex(), rows.tolist())
    digest = fingerprint(_FORMAT, *which, side, plan.seed, plan.ece_bins, frost and frost.digest())
    paths = {key: training.folder.robustness for key, training in group.items()}
    about = json.dumps([digest])
    results = {_name(key): _load_results(path, about, context.progress) for key, path in paths.items()}

    def save() -> None:
        for key, path in paths.items():
            save_results(path, results[_name(key)], about)
        context.progress.check()

    # All models are given the same batches, so none has a size of its own.
    size = batch_size_for(side, _BATCH, context.device)
    models = {
        _name(key): replace(predictor(training), batch_size=size).prepared(
            len(rows), size, progress=context.progress
        )[0]
        for key, training in group.items()
    }
    first = next(iter(models.values()))
    run_tests(
        models,
        generate(first, images, rows, Options(seed=plan.seed), frost),
        plan,
        results,
        save=save,
        progress=lambda done, total: context.progress.advance("robustness", done, total),
    )
    # robustness.npz may hold results of tests that are not configured any more.
    return {
        key: {name: values for name, values in results[_name(key)].items() if plan.includes(name)}
        for key in group
    }


def _load_results(path: Path, about: str, progress: Progress) -> Results:
    """Return the results on disk; a damaged file is moved away, and its tests are done again."""
    try:
        return load_results(path, about)
    except RunError as error:
        progress.say(f"{error}; kept in {put_aside(path)}; its tests are done again")
        return {}


def _name(key: Key) -> str:
    return f"{key[1]}-{key[0]}"
