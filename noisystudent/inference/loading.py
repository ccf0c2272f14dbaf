"""Find and load a trained model: of a run, a weights file, timm by name, or ONNX."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from noisystudent import rundir
from noisystudent.config import ModelConfig
from noisystudent.data.imageset import Shown
from noisystudent.errors import InputError, first_line
from noisystudent.evaluate.subsets import imagenet_classes
from noisystudent.models.pretrained import Unavailable
from noisystudent.models.registry import Classifier, asked, build_model, load_weights
from noisystudent.runtime import resolve_device, resolve_dtype


@dataclass(frozen=True, slots=True)
class Predictor:
    """A model ready to be asked.

    Attributes:
        model: on `device`, in evaluation mode, noise off.
        classes: in the order of its outputs; empty where the model does not name them.
        path: the file its weights came from; None for weights that timm publishes.
        view: how its makers show it images; None is this package's own clean view.
        before: weights of the same model of a run before it was fine-tuned at a higher resolution.
        dtype: of the forward pass; an ONNX file has its own.
    """

    model: Classifier | OnnxModel
    classes: tuple[str, ...]
    path: Path | None
    device: torch.device
    view: Shown | None = None
    before: Path | None = None
    dtype: torch.dtype = torch.float32

    @property
    def names(self) -> tuple[str, ...]:
        """Of its outputs: the classes, or numbers where the model does not name them."""
        return self.classes or tuple(map(str, range(self.model.num_classes)))

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 → logits (B, K) float32."""
        return asked(self.model, self.device, self.dtype)(images)


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
        for home in (path / folder / rundir.FINETUNE, path / folder):
            if _is_done(home / "model.safetensors"):
                return home / "model.safetensors"
    close = [] if path.exists() else get_close_matches(path.name, timm.list_models(), n=1)
    raise InputError(
        f"{path} holds no trained model; give a run directory, a model folder, a .safetensors or .onnx file"
        + (f", or did you mean timm's {close[0]}?" if close else "")
    )


def load_predictor(
    model: str | Path,
    device: str = "auto",
    *,
    checkpoint: Path | None = None,
    size: int | None = None,
    precision: str = "auto",
) -> Predictor:
    """Load a trained model; reads no pickled code.

    Args:
        model: a run directory, a model folder, a .safetensors or .onnx file, or a timm model by name.
        device: auto, or a torch device.
        checkpoint: weights for the timm model, in place of those that timm publishes.
        size: side in pixels at which it is shown images; None is its own.
        precision: auto, fp32 or bf16; auto is bf16 on a GPU and fp32 on a CPU. An ONNX file has its own.

    Raises:
        InputError: there is no such model, a file does not say what it is, or an option it cannot have.
    """
    path, place = Path(model), resolve_device(device)
    dtype = resolve_dtype(precision, place)
    if not path.exists() and path.suffix != ".onnx" and timm.is_model(str(model).split(".")[0]):
        return replace(_published(str(model), place, checkpoint, size), dtype=dtype)
    if checkpoint is not None:
        raise InputError(f"--checkpoint is {checkpoint}; it goes with the name of a timm model, not {path}")
    if path.suffix == ".onnx":
        return _onnx(path, size)
    return replace(_own(path, place, size), dtype=dtype)


def _own(path: Path, place: torch.device, size: int | None) -> Predictor:
    """Of a run, or of a file that this package wrote."""
    found = find_model(path)
    predictor, first = _described(found, place, size), found.parent.parent / found.name
    if found.parent.name != rundir.FINETUNE or path in (found, found.parent) or size is not None:
        return predictor
    with safe_open(first, framework="pt") as file:
        lower = int(file.metadata()["resolution"]) < predictor.model.resolution
    return replace(predictor, before=first if lower else None)


def _described(weights: Path, place: torch.device, size: int | None) -> Predictor:
    """Weights with this package's description of their model."""
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
    model = build_model(config, int(about["num_classes"]), size or int(about["resolution"]))
    load_weights(model, weights)
    return Predictor(_placed(model, place), tuple(json.loads(about["classes"])), weights, place)


def _placed(model: Classifier, place: torch.device) -> Classifier:
    """Ready to be asked, in the memory format in which convolutions are fastest."""
    return model.to(place).to(memory_format=torch.channels_last).eval()


def _published(name: str, place: torch.device, checkpoint: Path | None, size: int | None) -> Predictor:
    """A timm model, with the resolution, crop and interpolation of its configuration."""
    given: Any = timm.get_pretrained_cfg(name)  # timm has one for every model
    shown = resolve_data_config(pretrained_cfg=given.to_dict(), use_test_size=True)
    side = size or int(shown["input_size"][-1])
    shown["input_size"] = (3, side, side)
    config = ModelConfig(name=name, pretrained=checkpoint is None, dropout=0.0, stochastic_depth=0.0)
    try:
        model = build_model(config, given.num_classes, side)
    except InputError as error:
        if not isinstance(error.__cause__, Unavailable):
            raise
        raise InputError(
            f"the published weights of {name} cannot be had: {error.__cause__}; give them with --checkpoint"
        ) from error
    if checkpoint is not None:
        load_weights(model, checkpoint)
    classes = imagenet_classes() if given.num_classes == len(imagenet_classes()) else ()
    return Predictor(_placed(model, place), classes, checkpoint, place, partial(_as_published, shown))


def _as_published(shown: dict[str, Any], image: Image.Image, _side: int) -> Tensor:
    """timm's own view for validation, as pixels (3, S, S) uint8."""
    pixels: Tensor = create_transform(**shown, is_training=False, normalize=False)(image)
    return pixels


class OnnxModel:
    """A network in ONNX Runtime, on the CPU; it gives no gradients.

    Attributes:
        name: of the file.
        num_classes: K.
        resolution: side in pixels.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise InputError(f"{path} needs {error.name}; pip install 'noisystudent[export]'") from error
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base but this
            raise InputError(f"{path} is no readable ONNX file ({first_line(error)})") from error
        (images, *_), (logits, *_) = self._session.get_inputs(), self._session.get_outputs()
        self._names = images.name, logits.name
        self.about: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        if images.type != "tensor(uint8)" or not {"classes", "resolution"} <= self.about.keys():
            raise InputError(
                f"{path} takes {images.type} images and has metadata {sorted(self.about)}; give one that"
                " `export --format onnx` wrote: uint8 images, classes and resolution"
            )
        self.name, self.resolution = path.name, int(self.about["resolution"])
        self.num_classes = len(json.loads(self.about["classes"]))

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> logits (B, K) float32."""
        (logits,) = self._session.run([self._names[1]], {self._names[0]: images.cpu().contiguous().numpy()})
        return torch.from_numpy(logits)


def _onnx(path: Path, size: int | None) -> Predictor:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    model = OnnxModel(path)
    if size not in (None, model.resolution):
        raise InputError(f"--eval-size is {size}; {path} was exported for {model.resolution} pixels alone")
    return Predictor(model, tuple(json.loads(model.about["classes"])), path, resolve_device("cpu"))


def _is_done(weights: Path) -> bool:
    record = weights.with_name("stage.json")
    return weights.is_file() and record.is_file() and rundir.read_json(record).get("status") == "done"
