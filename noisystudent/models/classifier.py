"""A timm model that takes uint8 images, and functions that save and load its weights under timm's names."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm.models
import torch
from torch import Tensor, nn

from noisystudent.config import ModelConfig
from noisystudent.errors import InputError, first_line, require
from noisystudent.models.noise import ModelNoise
from noisystudent.run.files import atomic

TEMPERATURE = "temperature"
"""Key in the metadata of a weights file: number by which logits are divided before a softmax."""


class Classifier(nn.Module):
    """A timm model that normalises uint8 images itself and returns float32 logits.

    Attributes:
        net: timm model; its state_dict has timm's names.
        noise: dropout and stochastic depth of `net`; off until `noise.draw` is called.
        mean, std: (1, 3, 1, 1) of timm's configuration, for pixels in [0, 1]; not part of the state_dict.
        name: name of the model in timm.
        num_classes: K.
        resolution: side in pixels of the images for which the model was built.
        head: kind of the classifier of `net`, see `ModelConfig.head`.
        options: further arguments of timm.create_model with which the model was built.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, config: ModelConfig, num_classes: int, resolution: int) -> None:
        super().__init__()
        self.net = net
        self.noise = ModelNoise(net, config.dropout, config.stochastic_depth)
        self.name = config.name
        self.num_classes = num_classes
        self.resolution = resolution
        self.head = config.head
        self.options = dict(config.options)
        cfg: Any = net.pretrained_cfg  # timm sets it on every model
        # Not persistent: they are constants of the model, so snapshots need not contain them.
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(cfg[key]).view(1, 3, 1, 1), persistent=False)
        self._frozen: tuple[str, ...] = ()  # names of the modules that stay in evaluation mode

    def freeze(self, blocks: int) -> None:
        """Freeze the stem and the first `blocks` blocks, as in Touvron et al. 2019 (arXiv 1906.06423).

        Their weights and batch-norm statistics do not change, and stochastic depth drops none of their
        branches.

        Args:
            blocks: number of blocks, as timm counts them for layer-wise learning rates.

        Raises:
            InputError: timm defines no blocks for this network, or fewer than `blocks`.
        """
        stem, *rest = _parameter_groups(self.net)
        if blocks > len(rest) - 1:  # the last group is the head
            raise InputError(
                f"finetune.frozen_blocks is {blocks}; it must be at most {max(len(rest) - 1, 0)}, the number"
                f" of blocks of {self.name}"
            )
        for name in (name for group in (stem, *rest[:blocks]) for name in group):
            self.net.get_parameter(name).requires_grad = False
        self._frozen = (*{name.rpartition(".")[0] for name in stem}, *map(_common_module, rest[:blocks]))
        self.noise.spare([self.net.get_submodule(name) for name in self._frozen])
        self.train(self.training)  # sets the frozen modules to evaluation mode

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode of all modules but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        # In training mode batch norm would update the statistics of frozen modules.
        for name in self._frozen:
            self.net.get_submodule(name).eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, in float32 under autocast too: (B, 3, S, S) uint8 -> (B, K).

        Images may have any memory format.
        """
        # Normalised here, so that images are transferred to the device as bytes.
        logits: Tensor = self.net((images / 255 - self.mean) / self.std)
        return logits.float()

    def features(self, images: Tensor) -> Tensor:
        """Compute the input of the classifier, pooled features: (B, 3, S, S) uint8 -> (B, F) float32."""
        net: Any = self.net
        maps = net.forward_features((images / 255 - self.mean) / self.std)
        features: Tensor = net.forward_head(maps, pre_logits=True)
        return features.float()


def save_weights(
    classifier: Classifier,
    path: Path,
    classes: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file that `timm.create_model(name, num_classes=K, checkpoint_path=path)` reads.

    The metadata of the file holds architecture, num_classes, resolution, mean, std, options, classes, and the
    head unless it is linear as in timm. Values that are not plain strings are written as JSON.

    Args:
        classifier: on any device.
        path: must end in .safetensors.
        classes: names of the K classes, in the order of the logits.
        more: further entries of the metadata.

    Raises:
        RunError: the file cannot be written. A file that was there before is unchanged.
    """
    state = classifier.net.state_dict()
    # Copies, because tied weights share memory, and safetensors does not accept that.
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}
    metadata = {
        "format": "pt",
        "architecture": classifier.name,
        "num_classes": str(classifier.num_classes),
        "resolution": str(classifier.resolution),
        "mean": json.dumps(classifier.mean.flatten().tolist()),
        "std": json.dumps(classifier.std.flatten().tolist()),
        "options": json.dumps(classifier.options),
        "classes": json.dumps(list(classes)),
    } | dict(more or {})
    if classifier.head != "linear":
        metadata["head"] = classifier.head
    write_tensors(path, tensors, metadata)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file of tensors on the CPU, with `atomic`."""
    # Not safetensors.save_file: only the owner could read the file.
    with atomic(path) as partial:
        partial.write_bytes(_with_sorted_metadata(safetensors.torch.save(tensors, metadata)))


def _with_sorted_metadata(data: bytes) -> bytes:
    """The same safetensors file with its metadata in order of the keys.

    safetensors writes them in an order that differs from process to process. Files of equal weights shall
    have equal bytes.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors to begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[end:]


def class_names(names: str, count: int) -> tuple[str, ...]:
    """Class names in the metadata of a model file: none, or one for each of the `count` outputs.

    Raises:
        ValueError: not valid JSON.
        InputError: not a list of different names, or not as many as outputs.
    """
    classes = json.loads(names)
    text = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    require(text, "its class names are not a list of text")
    different = len(set(classes))
    require(different in (0, count), f"{different} different class names for {count} outputs")
    return tuple(classes)


def temperature_in(metadata: Mapping[str, str]) -> float:
    """Temperature in the metadata of a model file; 1 if the file has none.

    Raises:
        ValueError: not a number.
        InputError: not finite, or not above 0.
    """
    temperature = float(metadata.get(TEMPERATURE, "1"))
    require(math.isfinite(temperature) and temperature > 0, f"its temperature is {temperature}")
    return temperature


def load_weights(classifier: Classifier, path: Path) -> None:
    """Load a safetensors file, or a torch checkpoint without pickled code, into the classifier's network.

    Raises:
        InputError: the file does not exist, is not a checkpoint, or belongs to another model or another
            number of classes.
    """
    state = _read(classifier, path)
    _check_tensors(classifier, path, state)
    classifier.net.load_state_dict(state)


def load_trunk(classifier: Classifier, path: Path) -> None:
    """Load all weights but those of the classification layer, from the same network with other classes.

    Raises:
        InputError: the file does not exist, or belongs to another model.
    """
    own, state = classifier.net.state_dict(), _read(classifier, path)
    head = _head_prefixes(classifier.net)
    # Checked here, because load_state_dict(strict=False) ignores names that the model does not have.
    for key, value in state.items():
        if not key.startswith(head) and (key not in own or own[key].shape != value.shape):
            raise InputError(
                f"{path} has {key!r} of shape {tuple(value.shape)}, which {classifier.name} does not have;"
                " give weights of this model"
            )
    trunk = {key: value for key, value in state.items() if not key.startswith(head)}
    missing = classifier.net.load_state_dict(trunk, strict=False).missing_keys
    if missing_trunk := [key for key in missing if not key.startswith(head)]:
        raise InputError(
            f"{path} lacks {missing_trunk[0]!r}, which {classifier.name} needs; give weights of this model"
        )


def _head_prefixes(net: Any) -> tuple[str, ...]:
    """Prefixes of the weights of the classification layer; networks with distillation have two layers."""
    names = net.pretrained_cfg["classifier"]  # a string or several strings
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _parameter_groups(net: Any) -> list[list[str]]:
    """Names of the parameters of the stem, of each block and of the head, in this order."""
    if not hasattr(net, "group_matcher"):
        raise InputError(
            f"finetune.frozen_blocks is set, but timm defines no blocks for {type(net).__name__}; remove it"
        )
    # Not coarse: one group for each block; coarse groups are the stages.
    groups: dict[int, list[str]] = timm.models.group_parameters(net, net.group_matcher(coarse=False))
    return [groups[number] for number in sorted(groups)]


def _common_module(names: Sequence[str]) -> str:
    """Name of the innermost module that holds all of these parameters."""
    paths = [name.rpartition(".")[0].replace(".", "/") for name in names]  # module names as paths
    return os.path.commonpath(paths).replace("/", ".")


def _read(classifier: Classifier, path: Path) -> dict[str, Tensor]:
    """Read the state_dict of a checkpoint; `weights_only`, so that no pickled code runs."""
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a .safetensors file or a torch checkpoint")
    if path.suffix == ".safetensors":
        _check_architecture(classifier, path)
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # a damaged pickle can raise any exception
        reason = first_line(error)
        raise InputError(
            f"{path} is not a readable checkpoint ({reason}); give safetensors or torch weights"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"{path} does not contain a state_dict; save one with torch.save(model.state_dict(), path)"
        )
    return state


def _check_architecture(classifier: Classifier, path: Path) -> None:
    """Raise if the file names another architecture.

    Shapes are not enough: two models can have the same shapes and compute different functions.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stored_name = (file.metadata() or {}).get("architecture", classifier.name)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); write it again") from error
    if stored_name.split(".")[0] != classifier.name.split(".")[0]:  # without the tag of published weights
        raise InputError(f"{path} contains weights of {stored_name}; the model is {classifier.name}")


def _check_tensors(classifier: Classifier, path: Path, state: dict[str, Tensor]) -> None:
    """Raise unless names and shapes are those of the network; torch's own message has many lines."""
    model = f"{classifier.name} with {classifier.num_classes} classes at {classifier.resolution} pixels"
    own = classifier.net.state_dict()
    for key, value in own.items():
        if key not in state:
            raise InputError(f"{path} lacks {key!r}, which {model} needs; give weights of this model")
        shape, needed = tuple(state[key].shape), tuple(value.shape)
        if shape != needed:
            raise InputError(f"{path} has {key!r} of shape {shape}; {model} needs {needed}")
    for key in state:
        if key not in own:
            raise InputError(f"{path} has {key!r}, which {model} does not have; give weights of this model")
