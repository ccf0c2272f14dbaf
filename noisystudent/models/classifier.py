"""A timm model that takes uint8 images, and its weights on disk under timm's own names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm.models
import torch
from torch import Tensor, nn

from noisystudent.config import ModelConfig
from noisystudent.errors import InputError, first_line
from noisystudent.models.noise import ModelNoise
from noisystudent.rundir import atomic

Predict = Callable[[Tensor], Tensor]


class Classifier(nn.Module):
    """Normalises uint8 images by the model's own mean and deviation, and returns float32 logits.

    Attributes:
        net: the timm model; its state_dict has timm's names.
        noise: dropout and stochastic depth of `net`; off until `noise.draw`.
        mean, std: (1, 3, 1, 1) of timm's configuration, for pixels in [0, 1]; not in the state_dict.
        name: the timm name it was built from.
        num_classes: K.
        resolution: side in pixels of the images it was built for.
        options: further arguments of timm.create_model it was built with.
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
        self.options = dict(config.options)
        cfg: Any = net.pretrained_cfg  # timm sets it on every model
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(cfg[key]).view(1, 3, 1, 1), persistent=False)

        self._frozen: tuple[str, ...] = ()

    def freeze(self, blocks: int) -> None:
        """Keep weights, batch-norm statistics and all branches of the stem and the first `blocks` blocks.

        Blocks are timm's, those of its layer-wise learning rates; see Touvron et al. 2019 (arXiv 1906.06423).

        Raises:
            InputError: the network does not tell its blocks, or has no more than so many.
        """
        stem, *rest = _parameter_groups(self.net)
        if blocks > len(rest) - 1:  # the last group is the head
            raise InputError(
                f"finetune.frozen_blocks is {blocks}; {self.name} has {max(len(rest) - 1, 0)} blocks"
            )
        for name in (name for group in (stem, *rest[:blocks]) for name in group):
            self.net.get_parameter(name).requires_grad = False
        self._frozen = (*{name.rpartition(".")[0] for name in stem}, *map(_common_module, rest[:blocks]))
        self.noise.spare([self.net.get_submodule(name) for name in self._frozen])
        self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        """As of any module; what is frozen stays in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.net.get_submodule(name).eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8, in any memory format -> logits (B, K) float32, under autocast too."""
        logits: Tensor = self.net((images / 255 - self.mean) / self.std)
        return logits.float()


def asked(model: Predict, device: torch.device, dtype: torch.dtype) -> Predict:
    """uint8 images (B, 3, S, S) on any device -> logits (B, K) float32, without gradients.

    Args:
        model: a classifier, or its compiled form, in evaluation mode on `device`.
        device: of the model.
        dtype: of the forward pass; float32 switches autocast off.
    """

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(images.to(device, non_blocking=True))
        return logits.float()

    return predict


def save_weights(classifier: Classifier, path: Path, classes: Sequence[str] = ()) -> None:
    """Write safetensors that `timm.create_model(name, num_classes=K, checkpoint_path=path)` reads.

    The metadata of the file holds architecture, num_classes, resolution, mean, std, options and classes: JSON
    where they are not plain strings.

    Args:
        classifier: on any device.
        path: ends in .safetensors.
        classes: names of the K classes, in the order of the logits.

    Raises:
        RunError: the file cannot be written; what was there before still is.
    """
    state = classifier.net.state_dict()
    # Copies, since tied weights share memory, which safetensors refuses.
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
    }
    with atomic(path) as partial:  # not save_file, which makes files that only their owner can read
        partial.write_bytes(safetensors.torch.save(tensors, metadata))


def load_weights(classifier: Classifier, path: Path) -> None:
    """Load safetensors, or a torch checkpoint without pickled code, into the classifier's network.

    Raises:
        InputError: no such file, not a checkpoint, or one of another model or number of classes.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file; give a .safetensors file or a torch checkpoint")
    if path.suffix == ".safetensors":
        _check_architecture(classifier, path)
    state = _read(path)
    _check_tensors(classifier, path, state)
    classifier.net.load_state_dict(state)


def load_trunk(classifier: Classifier, path: Path) -> None:
    """As `load_weights`, of the same network with other classes: all but the classifier.

    Raises:
        InputError: no such file, or one of another model.
    """
    _check_architecture(classifier, path)
    own, state = classifier.net.state_dict(), _read(path)
    head = _head_prefixes(classifier.net)
    for key, value in state.items():
        if not key.startswith(head) and (key not in own or own[key].shape != value.shape):
            raise InputError(f"{path} has {key!r} of shape {tuple(value.shape)}; {classifier.name} has not")
    kept = {key: value for key, value in state.items() if not key.startswith(head)}
    lacking = classifier.net.load_state_dict(kept, strict=False).missing_keys
    if foreign := [key for key in lacking if not key.startswith(head)]:
        raise InputError(f"{path} lacks {foreign[0]!r}; {classifier.name} has it")


def _head_prefixes(net: Any) -> tuple[str, ...]:
    said = net.pretrained_cfg["classifier"]
    return tuple(f"{name}." for name in ((said,) if isinstance(said, str) else said))


def _parameter_groups(net: Any) -> list[list[str]]:
    """Names of parameters: of the stem, of each block, of the head."""
    if not hasattr(net, "group_matcher"):
        raise InputError(
            f"finetune.frozen_blocks is given, but {type(net).__name__} does not tell its blocks"
        )
    found: dict[int, list[str]] = timm.models.group_parameters(net, net.group_matcher(coarse=False))
    return [found[number] for number in sorted(found)]


def _common_module(names: Sequence[str]) -> str:
    """The innermost module that holds all of these parameters."""
    folders = [name.rpartition(".")[0].replace(".", "/") for name in names]
    return os.path.commonpath(folders).replace("/", ".")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way it likes
        reason = first_line(error)
        raise InputError(
            f"{path} is no readable checkpoint ({reason}); give safetensors or torch weights"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state_dict; save one with torch.save(model.state_dict(), path)")
    return state


def _check_architecture(classifier: Classifier, path: Path) -> None:
    """Two models may agree in every shape and differ in what they compute, so a stored name decides."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("architecture", classifier.name)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is no readable safetensors file ({error}); write it again") from error
    if found.split(".")[0] != classifier.name.split(".")[0]:
        raise InputError(f"{path} holds weights of {found}; the model is {classifier.name}")


def _check_tensors(classifier: Classifier, path: Path, state: dict[str, Tensor]) -> None:
    model = f"{classifier.name} with {classifier.num_classes} classes at {classifier.resolution} pixels"
    own = classifier.net.state_dict()
    for key, value in own.items():
        if key not in state:
            raise InputError(f"{path} lacks {key!r}; {model} has it")
        found, needed = tuple(state[key].shape), tuple(value.shape)
        if found != needed:
            raise InputError(f"{path} has {key!r} of shape {found}; {model} needs {needed}")
    for key in state:
        if key not in own:
            raise InputError(f"{path} has {key!r}; {model} has not")
