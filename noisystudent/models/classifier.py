"""A timm model that takes uint8 images, and functions that save and load its weights under timm's names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from noisystudent.config import ModelConfig
from noisystudent.errors import InputError, require
from noisystudent.models import lora
from noisystudent.models.checkpointing import Checkpointing
from noisystudent.models.files import described, read_state, with_sorted_metadata
from noisystudent.models.layers import common_module, head_prefixes, layers, no_weight_decay
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
        head_kind: kind of the classifier of `net`, see `ModelConfig.head`.
        options: further arguments of timm.create_model with which the model was built.
        fell_back: True: all weights are random, because the published ones were not available.
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
        self.head_kind = config.head
        self.options = dict(config.options)
        self.fell_back = False
        cfg: Any = net.pretrained_cfg  # timm sets it on every model
        # Not persistent: they are constants of the model, so snapshots need not contain them.
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(cfg[key]).view(1, 3, 1, 1), persistent=False)
        self._frozen: tuple[str, ...] = ()  # names of the modules that stay in evaluation mode
        self._checkpointing: Checkpointing | None = None

    def layers(self, field: str) -> list[list[str]]:
        """Names of the parameters of the stem, of each block and of the head; see `models.layers`."""
        return [[f"net.{name}" for name in layer] for layer in layers(self.net, field)]

    def head(self) -> list[str]:
        """Names of the parameters of the classification layer."""
        prefixes = head_prefixes(self.net)
        return [f"net.{name}" for name, _ in self.net.named_parameters() if name.startswith(prefixes)]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters for which timm wants no weight decay."""
        return {f"net.{name}" for name in no_weight_decay(self.net)}

    def freeze(self, blocks: int, field: str = "train.frozen_blocks") -> None:
        """Freeze the stem and the first `blocks` blocks, as in Touvron et al. 2019 (arXiv 1906.06423).

        Their weights and batch-norm statistics do not change, and stochastic depth drops none of their
        branches.

        Args:
            blocks: number of blocks, as timm counts them for layer-wise learning rates.
            field: field of the configuration with this number.

        Raises:
            InputError: timm defines no blocks for this network, or fewer than `blocks`.
        """
        stem, *rest = layers(self.net, field)
        if blocks > len(rest) - 1:  # the last group is the head
            raise InputError(
                f"{field} is {blocks}; it must be at most {max(len(rest) - 1, 0)}, the number"
                f" of blocks of {self.name}"
            )
        for name in (name for group in (stem, *rest[:blocks]) for name in group):
            self.net.get_parameter(name).requires_grad = False
        modules = (*{name.rpartition(".")[0] for name in stem}, *map(common_module, rest[:blocks]))
        self.noise.spare([self.net.get_submodule(name) for name in modules])
        self._keep_evaluating(modules)

    def add_lora(self, rank: int, seed: int) -> None:
        """Train low-rank terms and the head alone, see `lora.add`; batch-norm statistics do not change.

        Call it after `freeze`: what is frozen gets no terms.

        Raises:
            InputError: no weight is large enough.
        """
        lora.add(self.net, rank, seed)
        self._keep_evaluating(
            name for name, module in self.net.named_modules() if isinstance(module, _BatchNorm)
        )

    def merge_lora(self) -> None:
        """Replace low-rank terms by ordinary weights; nothing happens without them."""
        lora.merge(self.net)

    def checkpoint_gradients(self) -> None:
        """Store less in training, and compute it again in the backward pass; the results are the same.

        Raises:
            InputError: timm cannot do this for the network.
        """
        try:
            self._checkpointing = Checkpointing(self.net)
        except (AttributeError, AssertionError) as error:
            raise InputError(
                f"model.grad_checkpointing is true, which {self.name} does not support; set it to false"
            ) from error
        self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode of all modules but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        # In training mode batch norm would update the statistics of frozen modules.
        for name in self._frozen:
            self.net.get_submodule(name).eval()
        if self._checkpointing is not None:  # without a backward pass there is nothing to save
            net: Any = self.net
            net.set_grad_checkpointing(mode)
        return self

    def _keep_evaluating(self, modules: Iterable[str]) -> None:
        self._frozen += tuple(modules)
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, in float32 under autocast too: (B, 3, S, S) uint8 -> (B, K).

        Images may have any memory format.
        """
        if self._checkpointing is not None:
            self._checkpointing.begin()
        logits: Tensor = self.net(self._normalized(images))
        if self._checkpointing is not None:
            self._checkpointing.end()
        return logits.float()

    def features(self, images: Tensor) -> Tensor:
        """Compute the input of the classifier, pooled features: (B, 3, S, S) uint8 -> (B, F) float32."""
        net: Any = self.net
        maps = net.forward_features(self._normalized(images))
        features: Tensor = net.forward_head(maps, pre_logits=True)
        return features.float()

    def _normalized(self, images: Tensor) -> Tensor:
        """Pixels for the network; computed here, so that images are transferred to the device as bytes."""
        return (images / 255 - self.mean) / self.std


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
    if classifier.head_kind != "linear":
        metadata["head"] = classifier.head_kind
    write_tensors(path, tensors, metadata)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file of tensors on the CPU, with `atomic`."""
    # Not safetensors.save_file: only the owner could read the file.
    with atomic(path) as partial:
        partial.write_bytes(with_sorted_metadata(safetensors.torch.save(tensors, metadata)))


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
        InputError: there is no such checkpoint, or it is of another model or another number of classes.
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
    head = head_prefixes(classifier.net)
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


def _read(classifier: Classifier, path: Path) -> dict[str, Tensor]:
    """State of a file, whose mean and standard deviation the classifier gets: weights go with them."""
    state, description = read_state(path, classifier.name), described(path)
    for key in {"mean", "std"} & description.keys():
        net: Any = classifier.net
        net.pretrained_cfg[key] = description[key]
        getattr(classifier, key).copy_(torch.tensor(description[key]).view(1, 3, 1, 1))
    return state


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
