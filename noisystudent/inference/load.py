"""Find and load a trained model: from a run, a weights file or an ONNX file, or by its name in timm."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from noisystudent.config import ModelConfig
from noisystudent.console import Progress
from noisystudent.data.imageset import View
from noisystudent.errors import InputError, did_you_mean, first_line, require
from noisystudent.inference.choice import chosen, is_done
from noisystudent.inference.predictor import Predictor
from noisystudent.models.classifier import Classifier
from noisystudent.models.onnx import OnnxModel
from noisystudent.models.pretrained import Unavailable
from noisystudent.models.registry import build_model
from noisystudent.models.weights import class_names, load_weights, temperature_in, transform_in
from noisystudent.robustness.imagenet import imagenet_classes
from noisystudent.run.record import require_intact
from noisystudent.run.rundir import ModelDir, RunDir, model_name, place_in_run
from noisystudent.runtime import resolve_device, resolve_dtype

# Keys that `save_weights` writes into the metadata of a .safetensors file.
_METADATA = {"architecture", "num_classes", "resolution", "classes", "options"}

_ENDINGS = (".safetensors", ".onnx", ".pt", ".pth", ".bin")  # of files of weights


def is_published(name: str) -> bool:
    """Return True for the name of a model of timm, which is no path; `resnet18.safetensors` is a path."""
    path = Path(name)
    return not (path.exists() or path.suffix.lower() in _ENDINGS) and timm.is_model(name.split(".")[0])


def find_model(path: Path) -> Path:
    """The weights file for a path: the file itself, the weights in a model folder, or those of a run.

    Of a run it is the last finished student, fine-tuned if it was, or the teacher if no student is finished;
    unless val shows that another model of the run is better, see `choice.chosen`.

    Raises:
        InputError: there is none.
    """
    if path.is_file():
        return path
    if ModelDir(path).weights.is_file():
        return ModelDir(path).weights
    choice = chosen(RunDir(path))
    if choice is not None:
        return choice[0].weights
    if path.suffix.lower() in _ENDINGS and not path.exists():
        raise InputError(f"{path}: no such file; give a file that `run` or `export` wrote")
    is_name = len(path.parts) == 1 and not path.exists()  # timm's names have no slash
    hint = did_you_mean(path.name, timm.list_models()) if is_name else ""
    raise InputError(
        f"{path} holds no trained model; give a run directory, a model folder, a .safetensors or .onnx file,"
        f" or the name of a timm model{hint}"
    )


def origin(weights: Path) -> str:
    """Return which model a weights file is, why the run uses it, and what the run lacks, for example

    'student-1 (photos/iteration-1/student/model.safetensors); the run is not finished: no student-2'.
    """
    place = place_in_run(weights)
    if place is None:
        return str(weights)
    run, iteration, role = place
    numbers = range(1, 1 + (run.student_count() or 0))
    missing = [f"student-{index}" for index in numbers if not is_done(run.iteration(index).model("student"))]
    model, reason = chosen(run) or (None, "")
    parts = [f"{model_name(iteration.index, role)} ({weights})"]
    if reason and model is not None and model.path.absolute() == weights.absolute().parent:
        parts.append(reason)
    if missing or not run.verdict.is_file():
        parts.append(f"the run is not finished: no {', '.join(missing) or 'verdict'} yet")
    return "; ".join(parts)


def load_predictor(
    model: str | Path,
    device: str = "auto",
    *,
    checkpoint: Path | None = None,
    size: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
) -> Predictor:
    """Load a trained model. No pickled code is read.

    Its probabilities have the temperature that was fitted on val and is stored with the weights.

    Args:
        model: a run directory, a model folder, a .safetensors or .onnx file, or the name of a timm model.
        device: auto, or a torch device.
        checkpoint: weights file for a timm model; None: the weights that timm publishes.
        size: side in pixels of the images that the model is given; None: the resolution of the model.
        precision: auto, fp32 or bf16; auto is bf16 on a GPU and fp32 on a CPU. A processor without bf16
            uses fp32. An ONNX file has a fixed precision.
        progress: prints a line if weights are downloaded. None: on standard error.

    Raises:
        InputError: there is no such model, a file has no description of its model, or an option does not fit
            the model.
    """
    require(size is None or size >= 1, f"--eval-size is {size}; it must be at least 1")
    path, torch_device = Path(model), resolve_device(device)
    dtype = resolve_dtype(precision, torch_device)
    if is_published(str(model)):
        published = _published(str(model), torch_device, checkpoint, size, progress)
        return replace(published, dtype=dtype)
    if checkpoint is not None:
        raise InputError(f"--checkpoint is {checkpoint}; it needs the name of a timm model, not {path}")
    if path.suffix.lower() == ".onnx":
        return _exported(path, size)
    return replace(_trained_here(path, torch_device, size), dtype=dtype)


def _trained_here(path: Path, device: torch.device, size: int | None) -> Predictor:
    """A model from a run, or from a file that this package wrote."""
    weights = find_model(path)
    require_intact(weights)
    predictor, folder = _from_metadata(weights, device, size), ModelDir(weights.parent.parent)
    # If the user gave these weights themselves or a size, all tests are run on exactly this model.
    explicit = path in (weights, weights.parent) or size is not None
    if weights != folder.finetune.weights or explicit:
        return predictor
    higher = int(_metadata(folder.weights)["resolution"]) < predictor.resolution
    return replace(predictor, before=folder.weights if higher else None)


def load_checkpoint(
    path: Path, network: ModelConfig, num_classes: int, resolution: int, device: str
) -> Predictor | None:
    """Load a checkpoint of a known network; None if the file describes its own model, or is no file.

    Args:
        path: a torch checkpoint, or a .safetensors file.
        network: the network; its resolution, if given, takes precedence over `resolution`.
        num_classes, resolution: number of its outputs, and side in pixels of its images.
        device: auto, or a torch device.

    Raises:
        InputError: the file cannot be read, or belongs to another network.
    """
    own = path.suffix.lower() == ".onnx" or (
        path.suffix.lower() == ".safetensors" and path.is_file() and _metadata(path).keys() >= _METADATA
    )
    if own or not path.is_file():
        return None
    model = build_model(network, num_classes, network.resolution or resolution, pretrained=False)
    load_weights(model, path)
    on = resolve_device(device)
    return Predictor(models=(_ready(model, on),), classes=(), device=on, path=path)


def stored_temperature(weights: Path) -> float:
    """Temperature that was fitted for the weights in a .safetensors file; 1 if none was.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return temperature_in(_metadata(weights))
    except ValueError as error:
        raise InputError(f"{weights}: its temperature is damaged; start its run again") from error


def _metadata(weights: Path) -> dict[str, str]:
    """Metadata of a .safetensors file."""
    try:
        with safe_open(weights, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{weights} is not a readable safetensors file ({error})") from error


def _from_metadata(weights: Path, device: torch.device, size: int | None) -> Predictor:
    """Build the model that the metadata of a weights file describes, and load the weights."""
    metadata = _metadata(weights)
    if not metadata.keys() >= _METADATA:
        raise InputError(
            f"{weights} has no description of its model; give a file that `run` or `export` wrote"
        )
    try:
        config = _described(metadata)
        count, side = int(metadata["num_classes"]), int(metadata["resolution"])
        classes, temperature = class_names(metadata["classes"], count), temperature_in(metadata)
        own = _own_view(transform_in(metadata), size or side)
        require(0 < 4 * count < weights.stat().st_size, f"it names {count:,} classes")
    except (ValueError, InputError) as error:
        raise InputError(
            f"{weights}: the description of its model is damaged ({first_line(error)}); write the file again"
        ) from error
    model = build_model(config, count, size or side)
    load_weights(model, weights)
    return Predictor(
        models=(_ready(model, device),),
        classes=classes,
        device=device,
        temperature=temperature,
        path=weights,
        view=own,
    )


def _described(metadata: dict[str, str]) -> ModelConfig:
    """The network in the metadata of a weights file, without noise."""
    options = json.loads(metadata["options"])
    require(isinstance(options, dict), "its options are not a mapping")
    head = metadata.get("head", "linear")
    require(head in ("linear", "mlp"), f"its head is {head!r}")
    return ModelConfig(
        name=metadata["architecture"],
        options=options,
        dropout=0.0,
        stochastic_depth=0.0,
        head="mlp" if head == "mlp" else "linear",
    )


def _ready(model: Classifier, device: torch.device) -> Classifier:
    """The model on its device, in evaluation mode and in the memory format with the fastest convolutions."""
    return model.to(device).to(memory_format=torch.channels_last).eval()


def _published(
    name: str, device: torch.device, checkpoint: Path | None, size: int | None, progress: Progress | None
) -> Predictor:
    """A timm model, with the resolution, crop and interpolation of timm's configuration."""
    cfg: Any = timm.get_pretrained_cfg(name)  # timm has one for every model
    transform = resolve_data_config(pretrained_cfg=cfg.to_dict(), use_test_size=True)
    side = size or int(transform["input_size"][-1])
    config = ModelConfig(name=name, pretrained=checkpoint is None, dropout=0.0, stochastic_depth=0.0)
    try:
        model = build_model(config, cfg.num_classes, side, progress=progress)
    except InputError as error:
        if not isinstance(error.__cause__, Unavailable):
            raise
        raise InputError(
            f"the published weights of {name} cannot be loaded: {error.__cause__};"
            " `evaluate` takes a file with --checkpoint"
        ) from error
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return Predictor(
        models=(_ready(model, device),),
        classes=imagenet_classes() if cfg.num_classes == len(imagenet_classes()) else (),
        device=device,
        path=checkpoint,
        view=_own_view(transform, side),
    )


def _own_view(transform: dict[str, Any] | None, side: int) -> View | None:
    """View of a model with timm's transform, at this side in pixels; None: this package's clean view."""
    return None if transform is None else partial(_timm_view, transform | {"input_size": (3, side, side)})


def _timm_view(transform: dict[str, Any], image: Image.Image, _side: int) -> Tensor:
    """Pixels (3, S, S) uint8 of timm's validation transform, before normalisation."""
    pixels: Tensor = create_transform(**transform, is_training=False, normalize=False)(image)
    return pixels


def _exported(path: Path, size: int | None) -> Predictor:
    """A model from an ONNX file, on the CPU."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an .onnx file that `export` wrote")
    model = OnnxModel(path)
    if size not in (None, model.resolution):
        raise InputError(
            f"--eval-size is {size}; {path} was exported for {model.resolution} pixels, its only size"
        )
    return Predictor(
        models=(model,),
        classes=model.classes,
        device=resolve_device("cpu"),
        temperature=model.temperature,
        path=path,
        view=_own_view(model.transform, model.resolution),
    )
