"""A trained model by itself: load it from a run, let it predict, label a pool, or be measured."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
from noisystudent.data.sources import Source
from noisystudent.data.workers import worker_count
from noisystudent.errors import InputError
from noisystudent.evaluate import suite
from noisystudent.models.registry import Classifier, build_model, load_weights
from noisystudent.pseudo_label import label_images
from noisystudent.records import PseudoLabels
from noisystudent.runtime import Silent, StopFlag, Voice, resolve_device

_BATCH = 256
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
    """The weights meant by a .safetensors file, a model folder, or a run directory (its last finished student).

    Raises:
        InputError: there are none.
    """
    if path.is_file():
        return path
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    found = [file for file in path.glob("iteration-*/student/model.safetensors") if _is_done(file)]
    if found:
        return max(found, key=lambda file: int(file.parts[-3].removeprefix("iteration-")))
    teacher = path / "iteration-0" / "teacher" / "model.safetensors"
    if teacher.is_file() and _is_done(teacher):
        return teacher
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


def predict(
    predictor: Predictor, source: Source, *, stop: StopFlag | None = None, voice: Voice | None = None
) -> Predicted:
    """Ask for the classes of images, clean centre views at the model's own resolution."""
    with _scanned(predictor, source, stop or StopFlag(), voice or Silent()) as (images, bad):
        rows = np.arange(len(images))
        if len(rows) == 0:
            return Predicted([], np.empty((0, len(predictor.classes)), np.float32), bad)
        probs = suite.predict_probs(predictor, _views(predictor, images)(rows))
        return Predicted(images.ids(rows), probs, bad)


def label(
    predictor: Predictor,
    source: Source,
    config: PseudoLabelConfig,
    out: Path,
    *,
    stop: StopFlag,
    voice: Voice,
) -> tuple[PseudoLabels, list[tuple[str, str]]]:
    """Label a pool into Parquet parts under `out`; a killed call goes on when repeated.

    Returns:
        The pseudo-labels, and (name, reason) of every image that could not be read.
    """
    with _scanned(predictor, source, stop, voice) as (images, bad):
        rundir.write_json(out / "classes.json", list(predictor.classes))
        labels = label_images(
            predictor,
            _views(predictor, images),
            images.ids,
            images.content_hash,
            num_classes=len(predictor.classes),
            config=config,
            out=out,
            stop=stop,
            progress=lambda done, total: voice.progress("labeling", done, total),
        )
        return labels, bad


def read_labels(path: Path) -> PseudoLabels:
    """Pseudo-labels that `label` or a run wrote.

    Raises:
        InputError: the folder is something else.
    """
    run_folder = path.parent.parent / "data" / "dataset.json"
    if (path / "classes.json").is_file():
        return PseudoLabels(path, len(rundir.read_json(path / "classes.json")))
    if run_folder.is_file():
        return PseudoLabels(path, len(rundir.read_json(run_folder)["classes"]))
    raise InputError(f"{path} holds no pseudo-labels; give a folder that `label` or `run` wrote")


def evaluate(predictor: Predictor, source: Source, *, stop: StopFlag, voice: Voice) -> dict[str, float]:
    """{top1, top5, nll, ece, brier} on labelled images.

    Raises:
        InputError: a class the model does not know, or no readable image.
    """
    with _scanned(predictor, source, stop, voice) as (images, _):
        probs = suite.predict_probs(predictor, _views(predictor, images)(np.arange(len(images))))
        return suite.score(probs, images.labels)


def _is_done(weights: Path) -> bool:
    record = weights.with_name("stage.json")
    return record.is_file() and rundir.read_json(record).get("status") == "done"


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
    predictor: Predictor, source: Source, stop: StopFlag, voice: Voice
) -> Iterator[tuple[ImageSet, list[tuple[str, str]]]]:
    """The readable images of a source, decoded once where they are few, and those that are not."""
    side, limits = predictor.model.resolution, DataConfig()
    with tempfile.TemporaryDirectory(prefix="noisystudent-") as name:
        folder = Path(name)
        (folder / "scratch").mkdir()
        listing = list_items(source, folder / "scratch" / "listing", stop)
        few = len(listing.index) * 3 * side * side <= _STORED_BYTES
        job = Job(source, limits.max_pixels, side if few else None)
        found = scan(listing, job, folder, "images", worker_count(None), stop, voice.progress)
        codes = _codes(predictor, found.names)
        images = ImageSet("images", predictor.classes, found.index, source, found.storage, limits.max_pixels)
        images.__dict__["labels"] = codes[images.labels]
        yield images, found.bad


def _codes(predictor: Predictor, names: Sequence[str]) -> NDArray[np.int64]:
    """Label number of the scan → class number of the model; -1 stays -1."""
    unknown = [name for name in names if name not in predictor.classes]
    if unknown:
        raise InputError(
            f"class {unknown[0]!r} is not one of the model's {len(predictor.classes)}"
            f" ({', '.join(predictor.classes[:5])}, …)"
        )
    return label_map(list(names), predictor.classes).astype(np.int64)
