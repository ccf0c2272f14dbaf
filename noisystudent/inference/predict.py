"""Predict classes of images, score a model on labelled images, or label a pool."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from noisystudent.config import EvaluateConfig, PseudoLabelConfig
from noisystudent.console import Progress
from noisystudent.data.sources import Place, Source
from noisystudent.errors import InputError
from noisystudent.inference.images import (
    Images,
    Labeled,
    class_numbers,
    open_images,
    open_labeled,
    scanned,
    stored_side,
    watched,
)
from noisystudent.inference.predictor import Predictor, predict_probs
from noisystudent.metrics import scores
from noisystudent.models.weights import weights_digest
from noisystudent.pseudo_label.label import label_images as write_labels
from noisystudent.pseudo_label.parts import check_parts
from noisystudent.pseudo_label.resume import is_of_other_images
from noisystudent.records import PseudoLabels
from noisystudent.run.files import check_out, read_json, write_json
from noisystudent.run.lock import lock
from noisystudent.run.rundir import LabelsDir, RunDir

_CLAIM = "labels.json"  # note in the output folder of `label_images`, which identifies the model
# Options of PseudoLabelConfig that have a meaning only while a student is trained.
_FOR_STUDENTS = ("noise", "hard", "on_the_fly", "match_temperature", "teacher")


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of a model for some images.

    Attributes:
        places: (N,) where the bytes of each image are in the source.
        probs: (N, K) float32 class probabilities.
        bad: (name, reason) of every image that could not be read; it is not among the N.
        source: source of the images.
    """

    places: list[Place]
    probs: NDArray[np.float32]
    bad: list[tuple[str, str]]
    source: Source

    @property
    def ids(self) -> list[str]:
        """(N,) names of the images: their paths relative to the given folder."""
        return [name for *_, name in self.places]


def predict(predictor: Predictor, images: Images, *, progress: Progress | None = None) -> Predictions:
    """Predict class probabilities of images, from clean centre views at the model's own resolution.

    Args:
        predictor: the model.
        images: the images, in any of the forms of `Images`.
        progress: shows the progress; None: nothing is shown.

    Raises:
        InputError: the images cannot be opened, or none of them can be read.
    """
    progress = progress or Progress()
    source = open_images(images, labeled=False)
    with scanned(source, None, progress, stored=stored_side(predictor)) as (readable, bad):
        model, _ = predictor.prepared(len(readable), progress=progress)
        views = watched(model.views(readable), "predicting", len(readable), progress)
        probs = predict_probs(model, views)
        return Predictions(readable.places(np.arange(len(readable))), probs, bad, source)


def score(
    predictor: Predictor, labeled: Labeled, *, progress: Progress | None = None
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Score a model on labelled images, at the temperature of `predictor`.

    Returns:
        {top1, top5, nll, ece, brier}, and (name, reason) of every image that could not be read. Such images
        are left out of the scores.

    Raises:
        InputError: a class that is not one of the model's, or no readable image.
    """
    progress = progress or Progress()
    numbers, source = partial(class_numbers, predictor.classes), open_labeled(labeled)
    with scanned(source, numbers, progress, stored=stored_side(predictor)) as (images, bad):
        model, _ = predictor.prepared(len(images), progress=progress)
        views = watched(model.views(images), "scoring", len(images), progress)
        probs = predict_probs(model, views)
        return scores.score(probs, images.labels, EvaluateConfig().ece_bins), bad


def label_images(
    predictor: Predictor,
    images: Images,
    out: Path,
    *,
    config: PseudoLabelConfig | None = None,
    progress: Progress | None = None,
) -> tuple[PseudoLabels, list[tuple[str, str]]]:
    """Label a pool, and write the pseudo-labels to `out` as Parquet parts.

    A stopped call continues after the last complete part when it is called again.

    Args:
        predictor: the teacher.
        images: the pool.
        out: folder to write to; new, empty, or with labels of the same model, options and images. More images
            may follow them.
        config: options of the pseudo-labels; None: the defaults.
        progress: shows the progress; None: nothing is shown.

    Returns:
        The pseudo-labels, and (name, reason) of every image that could not be read.

    Raises:
        InputError: `out` holds something else or other labels or is in use, or `config` has an option that
            only applies to the training of a student.
    """
    config, progress = config or PseudoLabelConfig(), progress or Progress()
    _refuse_options_of_students(config)
    source = open_images(images, labeled=False)
    with lock(out, "labelling"):
        _claim(out, predictor, config)
        with scanned(source, None, progress, stored=stored_side(predictor)) as (pool, bad):
            if is_of_other_images(LabelsDir(out), pool.content_hash):
                raise InputError(f"--out {out} holds the labels of other images; choose another folder")
            plain = replace(predictor, temperature=1.0)  # pseudo-labels have one of their own
            teacher = replace(plain, flip=config.flip, scales=config.scales).limited(config.batch_size)
            labels = write_labels(
                partial(teacher.prepared, progress=progress),
                partial(predictor.requested_views, pool),
                pool.ids,
                pool.content_hash,
                num_classes=predictor.num_classes,
                config=replace(config, batch_size=teacher.size),
                out=out,
                task="labeling",
                progress=progress,
            )
            return labels, bad


def _refuse_options_of_students(config: PseudoLabelConfig) -> None:
    for name in _FOR_STUDENTS:
        given, default = (str(getattr(of, name)).lower() for of in (config, PseudoLabelConfig()))
        if given != default:
            why = f"it applies only to `run`, so it must be {default} for `label`"
            raise InputError(f"pseudo_label.{name} is {given}; {why}")


def _claim(out: Path, predictor: Predictor, config: PseudoLabelConfig) -> None:
    """Write a note into `out` that identifies model and options, so that no two kinds of labels are mixed."""
    if predictor.path is None:
        assert isinstance(predictor.model, nn.Module)  # an ONNX file has a path
        weights = weights_digest(predictor.model)  # those that timm publishes under a name change
    else:
        with predictor.path.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    about: dict[str, object] = {"classes": list(predictor.names), "weights": weights}
    about |= {"flip": config.flip, "scales": list(config.scales)}
    about |= {"temperature": config.temperature, "top_k": config.top_k}
    claim = out / _CLAIM
    if claim.is_file():
        if read_json(claim) != about:
            raise InputError(
                f"--out {out} holds the labels of another model or of other options; choose another folder"
            )
    elif any(out.glob("part-*.parquet")):
        raise InputError(f"--out {out} holds pseudo-labels, but no {_CLAIM}; choose a new folder")
    else:
        check_out(claim)
        write_json(claim, about)


def read_labels(path: Path) -> PseudoLabels:
    """Read pseudo-labels that `label` or a run wrote.

    Raises:
        InputError: the folder holds no pseudo-labels.
        RunError: a part is missing or damaged.
    """
    labels = PseudoLabels(path, len(label_classes(path)))
    check_parts(labels)
    return labels


def label_classes(path: Path) -> tuple[str, ...]:
    """Return the class names of a folder of pseudo-labels that `label` or a run wrote.

    Raises:
        InputError: the folder holds no pseudo-labels.
    """
    # They are in the note of `label`, or in the description of the run's data.
    dataset = RunDir(Path(os.path.realpath(path)).parent.parent).data.dataset
    for file in (path / _CLAIM, dataset):
        if file.is_file():
            return tuple(map(str, read_json(file)["classes"]))
    raise InputError(f"{path} holds no pseudo-labels; give a folder that `label` or `run` wrote")
