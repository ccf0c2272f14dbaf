"""A trained model by itself: load it from a run, let it predict, label a pool, or be measured."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from noisystudent import rundir
from noisystudent.config import DataConfig, ModelConfig, PseudoLabelConfig
from noisystudent.data.assign import label_map
from noisystudent.data.imageset import ImageSet
from noisystudent.data.loader import clean_batches
from noisystudent.data.scan import Job, list_items, scan
from noisystudent.data.sources import ArraySource, Source, open_source
from noisystudent.data.workers import worker_count
from noisystudent.errors import InputError
from noisystudent.evaluate import suite
from noisystudent.models.registry import Classifier, build_model, load_weights
from noisystudent.pseudo_label import label_images
from noisystudent.records import PseudoLabels
from noisystudent.runtime import Silent, StopFlag, Voice, resolve_device

Images = str | Path | Sequence[str | Path] | NDArray[np.uint8] | Source
"""Folders, shards or files by name, an array (N, H, W) or (N, H, W, 3) uint8, or an open source."""

Labeled = Images | tuple[NDArray[np.uint8], Sequence[object] | NDArray[Any]]
"""Images that bring their labels, or `(images, labels)`."""

_BATCH = 256
_CLAIM = "labels.json"
_STORED_BYTES = 2**30  # decoded pixels kept beside a scan, so that images are decoded once


@dataclass(frozen=True, slots=True)
class Predictor:
    """A model ready to be asked.

    Attributes:
        model: on `device`, in evaluation mode, noise off.
        classes: in the order of its outputs.
        path: the file its weights came from.
    """

    model: Classifier
    classes: tuple[str, ...]
    path: Path
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 → logits (B, K) float32."""
        with torch.inference_mode():
            logits: Tensor = self.model(images.to(self.device))
        return logits


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


def find_model(path: Path) -> Path:
    """The weights meant by a .safetensors file, a model folder, or a run directory (last finished student).

    Raises:
        InputError: there are none.
    """
    if path.is_file():
        return path
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    students = [f"iteration-{index}/student" for index in range(rundir.student_count(path) or 0, 0, -1)]
    for folder in (*students, "iteration-0/teacher"):
        if _is_done(path / folder / "model.safetensors"):
            return path / folder / "model.safetensors"
    raise InputError(
        f"{path} holds no trained model; give a run directory, a model folder or a .safetensors file"
    )


def load_predictor(path: str | Path, device: str = "auto") -> Predictor:
    """Load what `find_model` finds; reads no pickle.

    Raises:
        InputError: no model there, or a file without this package's description of it.
    """
    weights = find_model(Path(path))
    try:
        with safe_open(weights, framework="pt") as file:
            about = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{weights} is not a readable safetensors file ({error})") from error
    if not {"architecture", "num_classes", "resolution", "classes", "options"} <= about.keys():
        raise InputError(f"{weights} does not say what model it is; give one that `run` or `export` wrote")
    config = ModelConfig(
        name=about["architecture"], options=json.loads(about["options"]), dropout=0.0, stochastic_depth=0.0
    )
    model = build_model(config, int(about["num_classes"]), int(about["resolution"]))
    load_weights(model, weights)
    place = resolve_device(device)
    return Predictor(model.to(place).eval(), tuple(json.loads(about["classes"])), weights, place)


def open_images(given: Images, labeled: bool) -> Source:
    """A source of whatever names or holds the images.

    Raises:
        InputError: nothing is there, no images, or images without the labels that are needed.
    """
    if isinstance(given, np.ndarray):
        return open_source([ArraySource(given)], labeled)
    if not isinstance(given, Sequence | Path):
        return given
    return open_source([given] if isinstance(given, str | Path) else list(given), labeled)


def open_labeled(given: Labeled) -> Source:
    """As `open_images`, for images with labels."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], np.ndarray):
        return open_source([ArraySource(given[0], given[1])], labeled=True)
    return open_images(given, labeled=True)


def predict(
    predictor: Predictor, images: Images, *, stop: StopFlag | None = None, voice: Voice | None = None
) -> Predicted:
    """Ask for the classes of images, clean centre views at the model's own resolution."""
    source = open_images(images, labeled=False)
    with _scanned(predictor, source, False, stop, voice) as (found, bad):
        rows = np.arange(len(found))
        if len(rows) == 0:
            return Predicted([], np.empty((0, len(predictor.classes)), np.float32), bad)
        probs = suite.predict_probs(predictor, _views(predictor, found)(rows))
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
    with _scanned(predictor, open_labeled(labeled), True, stop, voice) as (found, bad):
        probs = suite.predict_probs(predictor, _views(predictor, found)(np.arange(len(found))))
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
        InputError: `out` holds something else, or what another model said.
    """
    stop, voice = stop or StopFlag(), voice or Silent()
    source = open_images(images, labeled=False)
    _claim(out, predictor)
    with _scanned(predictor, source, False, stop, voice) as (found, bad):
        labels = label_images(
            predictor,
            _views(predictor, found),
            found.ids,
            found.content_hash,
            num_classes=len(predictor.classes),
            config=config,
            out=out,
            stop=stop,
            progress=lambda done, total: voice.progress("labeling", done, total),
        )
        return labels, bad


def _claim(out: Path, predictor: Predictor) -> None:
    """Say in `out` whose labels it holds: two models' parts must not meet, nor other files pass for parts."""
    with predictor.path.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    about, claim = {"classes": list(predictor.classes), "weights": weights}, out / _CLAIM
    if claim.is_file():
        if rundir.read_json(claim) != about:
            raise InputError(f"--out {out} holds the labels of another model; choose another folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} holds something else; choose a new folder")
    else:
        rundir.write_json(claim, about)


def read_labels(path: Path) -> PseudoLabels:
    """Pseudo-labels that `label` or a run wrote.

    Raises:
        InputError: the folder is something else.
    """
    run_folder = path.parent.parent / "data" / "dataset.json"
    if (path / _CLAIM).is_file():
        return PseudoLabels(path, len(rundir.read_json(path / _CLAIM)["classes"]))
    if run_folder.is_file():
        return PseudoLabels(path, len(rundir.read_json(run_folder)["classes"]))
    raise InputError(f"{path} holds no pseudo-labels; give a folder that `label` or `run` wrote")


def _is_done(weights: Path) -> bool:
    record = weights.with_name("stage.json")
    return weights.is_file() and record.is_file() and rundir.read_json(record).get("status") == "done"


def _views(predictor: Predictor, images: ImageSet) -> Callable[[NDArray[np.int64]], Iterator[Tensor]]:
    return lambda rows: clean_batches(
        images,
        rows,
        resolution=predictor.model.resolution,
        batch_size=_BATCH,
        device=predictor.device,
        workers=worker_count(None),
    )


@contextmanager
def _scanned(
    predictor: Predictor, source: Source, labeled: bool, stop: StopFlag | None, voice: Voice | None
) -> Iterator[tuple[ImageSet, list[tuple[str, str]]]]:
    """The readable images of a source, decoded once where they are few, and those that are not.

    Only where `labeled` are the folders they lie in taken for classes.
    """
    stop, voice = stop or StopFlag(), voice or Silent()
    side, limits = predictor.model.resolution, DataConfig()
    with tempfile.TemporaryDirectory(prefix="noisystudent-") as name:
        folder = Path(name)
        (folder / "scratch").mkdir()
        listing = list_items(source, folder / "scratch" / "listing", stop)
        few = len(listing.index) * 3 * side * side <= _STORED_BYTES
        job = Job(source, limits.max_pixels, side if few else None)
        found = scan(listing, job, folder, "images", worker_count(None), stop, voice.progress)
        images = ImageSet("images", predictor.classes, found.index, source, found.storage, limits.max_pixels)
        if labeled:
            images.__dict__["labels"] = _codes(predictor, found.names)[images.labels]
        yield images, found.bad


def _codes(predictor: Predictor, names: Sequence[str]) -> NDArray[np.int64]:
    """Label number of the scan → class number of the model; -1 stays -1."""
    unknown = [name for name in names if name not in predictor.classes]
    if unknown:
        raise InputError(
            f"class {unknown[0]!r} is not one of the model's {len(predictor.classes)}"
            f" ({', '.join(predictor.classes[:5])}{', …' if len(predictor.classes) > 5 else ''})"
        )
    return label_map(list(names), predictor.classes).astype(np.int64)
