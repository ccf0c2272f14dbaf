"""Ask a trained model: predict, score on labelled images, label a pool."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent import rundir
from noisystudent.config import PseudoLabelConfig
from noisystudent.errors import InputError
from noisystudent.evaluate import suite
from noisystudent.inference.images import (
    Images,
    Labeled,
    class_numbers,
    open_images,
    open_labeled,
    requested_views,
    scanned,
    stored_side,
    views,
    watched,
)
from noisystudent.inference.loading import OnnxModel, Predictor
from noisystudent.models.registry import asked
from noisystudent.pseudo_label import averaged, label_images, labeler
from noisystudent.records import PseudoLabels
from noisystudent.runtime import Silent, StopFlag, Voice

_CLAIM = "labels.json"
_OF_A_STUDENT = ("noise", "hard", "on_the_fly", "match_temperature")


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a model said about some images.

    Attributes:
        ids: (N,) names of the images, paths below the folder that was named.
        probs: (N, K) float32.
        bad: (name, reason) of every image that could not be read; it has no row.
    """

    ids: list[str]
    probs: NDArray[np.float32]
    bad: list[tuple[str, str]]


def predict(
    predictor: Predictor, images: Images, *, stop: StopFlag | None = None, voice: Voice | None = None
) -> Predicted:
    """Ask for the classes of images, clean centre views at the model's own resolution."""
    stop, voice = stop or StopFlag(), voice or Silent()
    source = open_images(images, labeled=False)
    with scanned(source, None, stop, voice, stored=stored_side(predictor)) as (found, bad):
        rows = np.arange(len(found))
        if len(rows) == 0:
            return Predicted([], np.empty((0, predictor.model.num_classes), np.float32), bad)
        seen = watched(views(predictor, found, rows), "predicting", len(rows), stop, voice)
        probs = suite.predict_probs(predictor, seen)
        return Predicted(found.ids(rows), probs, bad)


def score(
    predictor: Predictor, labeled: Labeled, *, stop: StopFlag | None = None, voice: Voice | None = None
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Measure a model on labelled images.

    Returns:
        {top1, top5, nll, ece, brier}, and (name, reason) of every image that could not be read: it counts
        neither as right nor as wrong.

    Raises:
        InputError: a class the model does not know, or no readable image.
    """
    stop, voice = stop or StopFlag(), voice or Silent()
    numbers = partial(class_numbers, predictor.classes)
    with scanned(open_labeled(labeled), numbers, stop, voice, stored=stored_side(predictor)) as (found, bad):
        rows = np.arange(len(found))
        seen = watched(views(predictor, found, rows), "scoring", len(rows), stop, voice)
        probs = suite.predict_probs(predictor, seen)
        return suite.score(probs, found.labels), bad


def label(
    predictor: Predictor,
    images: Images,
    config: PseudoLabelConfig,
    out: Path,
    *,
    stop: StopFlag | None = None,
    voice: Voice | None = None,
) -> tuple[PseudoLabels, list[tuple[str, str]]]:
    """Label a pool into Parquet parts under `out`; a killed call goes on when repeated.

    Returns:
        The pseudo-labels, and (name, reason) of every image that could not be read.

    Raises:
        InputError: `out` holds something else, or what another model said; or `config` asks for what stored
            labels of clean images cannot have.
    """
    stop, voice = stop or StopFlag(), voice or Silent()
    for name in _OF_A_STUDENT:
        if getattr(config, name):
            raise InputError(f"pseudo_label.{name} is true; it is for the student of a run, not for label")
    source = open_images(images, labeled=False)
    _claim(out, predictor, config)
    with scanned(source, None, stop, voice, stored=stored_side(predictor)) as (found, bad):
        labels = label_images(
            _speaker(predictor, len(found), config, voice),
            partial(requested_views, predictor, found),
            found.ids,
            found.content_hash,
            num_classes=predictor.model.num_classes,
            config=config,
            out=out,
            stop=stop,
            progress=lambda done, total: voice.progress("labeling", done, total),
        )
        return labels, bad


def _speaker(
    predictor: Predictor, images: int, config: PseudoLabelConfig, voice: Voice
) -> Callable[[Tensor], Tensor]:
    model = predictor.model
    if isinstance(model, OnnxModel):
        one: Callable[[Tensor], Tensor] = predictor
    else:
        answering = partial(asked, device=predictor.device, dtype=predictor.dtype)
        one = labeler(model, answering, images=images, batch_size=config.batch_size, notify=voice.say)
    return averaged([one], flip=config.flip, scales=config.scales)


def _claim(out: Path, predictor: Predictor, config: PseudoLabelConfig) -> None:
    """Say in `out` whose labels it holds: two models' parts must not meet, nor other files pass for parts."""
    if predictor.path is None:
        weights = predictor.model.name  # as timm publishes them
    else:
        with predictor.path.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    about: dict[str, object] = {"classes": list(predictor.names), "weights": weights}
    about |= {"flip": config.flip, "scales": list(config.scales)}
    claim = out / _CLAIM
    if claim.is_file():
        if rundir.read_json(claim) != about:
            raise InputError(
                f"--out {out} holds the labels of another model or of other transforms; choose another folder"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} holds something else; choose a new folder")
    else:
        rundir.write_json(claim, about)


def read_labels(path: Path) -> PseudoLabels:
    """Pseudo-labels that `label` or a run wrote.

    Raises:
        InputError: the folder is something else.
    """
    run_folder = path.resolve().parent.parent / "data" / "dataset.json"
    if (path / _CLAIM).is_file():
        return PseudoLabels(path, len(rundir.read_json(path / _CLAIM)["classes"]))
    if run_folder.is_file():
        return PseudoLabels(path, len(rundir.read_json(run_folder)["classes"]))
    raise InputError(f"{path} holds no pseudo-labels; give a folder that `label` or `run` wrote")
