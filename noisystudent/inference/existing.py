"""First teachers that exist: find them, load them, and bring their classes into the order of the run."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from noisystudent.config import Config, FirstTeacherConfig
from noisystudent.data.sources.base import file_signature
from noisystudent.errors import InputError, require
from noisystudent.run.checksums import checksum
from noisystudent.run.described import normalization_beside
from noisystudent.run.fingerprint import fingerprint

if TYPE_CHECKING:
    from noisystudent.inference.predictor import Predictor  # imports torch, which a plan does not need

_FEW = 3  # class names in a message


def fingerprints(config: Config) -> tuple[str, ...]:
    """Return a fingerprint of each first teacher that is not trained, from the contents of its file.

    Of probabilities, which may be large, it is made from names, sizes and times of the files.

    Raises:
        InputError: there is no such model or file.
    """
    return tuple(_fingerprint(teacher) for teacher in config.teachers if teacher.existing)


def _fingerprint(teacher: FirstTeacherConfig) -> str:
    if teacher.labels_from is not None:
        files = probability_files(Path(teacher.labels_from))
        return fingerprint("labels", [file_signature(file) for file in files], teacher.classes)
    from noisystudent.inference.load import is_published

    name = str(teacher.model_from)
    if is_published(name):
        return fingerprint("model", name, teacher.classes)
    weights = _weights(Path(name))
    beside = normalization_beside(weights)
    return fingerprint("model", checksum(weights), teacher.classes, *([beside] if beside else []))


def _weights(path: Path) -> Path:
    from noisystudent.inference.load import find_model

    try:
        return find_model(path)
    except InputError as error:
        raise InputError(f"teachers: model_from {error}") from error


def probability_files(path: Path) -> list[Path]:
    """Return the Parquet files of `labels_from`: the file, or those in the folder, in order of their names.

    Raises:
        InputError: there is none.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise InputError(
            f"teachers: labels_from is {path}; it must be a Parquet file, or a folder of Parquet files"
        )
    return files


def load_existing(
    teacher: FirstTeacherConfig, classes: Sequence[str], resolution: int, device: str
) -> tuple[Predictor, tuple[int, ...]]:
    """Load a model that the run does not train.

    It is given this package's clean views at its own resolution, and its temperature is 1, as of the teachers
    that the run trains.

    Args:
        teacher: its section of the configuration.
        classes: classes of the run.
        resolution: side in pixels of a network that is not described in its file.
        device: device of the model; an ONNX file runs on the CPU.

    Returns:
        The model, and its output (K,) for each class.

    Raises:
        InputError: there is no such model, it cannot be read, or it has other classes.
    """
    from noisystudent.inference.load import load_checkpoint, load_predictor

    origin = str(teacher.model_from)
    try:
        predictor = load_checkpoint(
            Path(origin), teacher.model, len(classes), resolution, device
        ) or load_predictor(origin, device)
    except InputError as error:
        raise InputError(f"teachers: model_from {origin}: {error}") from error
    order = class_order(predictor.classes, teacher, classes)
    require(
        predictor.num_classes == len(order),
        f"teachers: model_from {origin} has {predictor.num_classes:,} outputs; it must have one for each of"
        f" the {len(order):,} classes of the run",
    )
    return replace(predictor, temperature=1.0, view=None), order


def class_order(named: Sequence[str], teacher: FirstTeacherConfig, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the output (K,) for each class of the run.

    Args:
        named: class names in the file, in the order of the outputs; empty: it has none.
        teacher: its section of the configuration, which may name the classes.
        classes: classes of the run.

    Raises:
        InputError: no names, or other classes than the run.
    """
    origin = f"teachers: {teacher.existing}"
    if named and teacher.classes and tuple(named) != teacher.classes:
        raise InputError(f"{origin} names its classes itself ({_few(named)}); remove classes from the entry")
    names = [unicodedata.normalize("NFC", name) for name in named or teacher.classes]
    if not names:
        raise InputError(
            f"{origin} does not name its classes; give them as classes, in the order of its outputs"
        )
    lacking, more = sorted(set(classes) - set(names)), sorted(set(names) - set(classes))
    if lacking or more:
        reasons = [f"lacks {_few(lacking)}" if lacking else "", f"has also {_few(more)}" if more else ""]
        raise InputError(
            f"{origin} {' and '.join(filter(None, reasons))}; it must have the classes of the run, which are"
            f" {len(classes)}"
        )
    return tuple(names.index(name) for name in classes)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(map(repr, names[:_FEW])) + more
