"""Weights of a classifier on disk, under timm's names."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from timm.data import create_transform
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from noisystudent.errors import InputError, require
from noisystudent.models.classifier import Classifier
from noisystudent.models.files import DIFFERENT, State, read_state, with_sorted_metadata
from noisystudent.models.layers import head_prefixes
from noisystudent.run.described import described
from noisystudent.run.files import atomic

TEMPERATURE = "temperature"
"""Key in the metadata of a weights file: number by which logits are divided before a softmax."""
TRANSFORM = "timm_transform"
"""Key in the metadata of a model file: arguments of timm's transform, for weights that timm publishes."""


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


def weights_digest(model: nn.Module) -> str:
    """Return a digest of the weights of a model, which identifies those that have no file of their own."""
    digest = xxhash.xxh3_128()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


def transform_in(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of timm's transform in the metadata of a model file; None if it has this package's view.

    Raises:
        ValueError: not valid JSON.
        InputError: timm does not take them.
    """
    arguments: dict[str, Any] | None = json.loads(metadata.get(TRANSFORM, "null"))
    try:
        if arguments is not None:
            create_transform(**arguments, is_training=False, normalize=False)
    except Exception as error:  # timm checks nothing
        raise InputError(f"its {TRANSFORM} is {arguments!r}") from error
    return arguments


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


def misfit(source: Classifier, target: Classifier) -> str | None:
    """Name of a tensor that keeps `target` from loading the weights of `source`; None if it can load them.

    Classification layers may differ. Only shapes are read, so both may be on the meta device.
    """
    values = source.net.state_dict().items()
    with torch.device("cpu"):  # conversions compute with the values; these take no memory
        zeros = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in values}
        return _misfit(target.net, _converted(target.net, zeros))


def _read(classifier: Classifier, path: Path) -> State:
    """State of a file, whose mean and standard deviation the classifier gets: weights go with them."""
    state, description = read_state(path, classifier.name), described(path)
    for key in {"mean", "std"} & description.keys():
        net: Any = classifier.net
        net.pretrained_cfg[key] = description[key]
        getattr(classifier, key).copy_(torch.tensor(description[key]).view(1, 3, 1, 1))
    return _converted(classifier.net, state)


def _converted(net: nn.Module, state: State) -> State:
    """State for the resolution of `net`, converted as in timm; one that does not fit even so is unchanged."""
    for convert in (dict, partial(_resampled, net), partial(_as_timm, net)):
        converted: State = convert(state)
        if _misfit(net, converted) is None:
            return converted
    return state


def _misfit(net: nn.Module, state: State) -> str | None:
    """First tensor that `net` or `state` lacks, or that differs in shape, the classification layer aside."""
    own, head = net.state_dict(), head_prefixes(net)
    shapes, needed = ({key: value.shape for key, value in one.items()} for one in (state, own))
    keys = (key for key in needed | shapes if not key.startswith(head))
    return next((key for key in keys if shapes.get(key) != needed.get(key)), None)


def _resampled(net: Any, state: State) -> State:
    """State with position embeddings for the resolution of `net`."""
    own, given = getattr(net, "pos_embed", None), state.get("pos_embed")
    if own is None or given is None or own.ndim != 3 or given.ndim != 3 or own.shape == given.shape:
        return state
    # Tokens before those of the image, such as the class token, stay as they are.
    prefix = 0 if getattr(net, "no_embed_class", False) else getattr(net, "num_prefix_tokens", 0)
    side, before = (math.isqrt(max(0, each.shape[1] - prefix)) for each in (own, given))
    if before**2 + prefix != given.shape[1]:
        return state  # not of square images, so of another network
    return state | {"pos_embed": resample_abs_pos_embed(given, [side, side], num_prefix_tokens=prefix)}


def _as_timm(net: nn.Module, state: State) -> State:
    """State with the conversion that timm has for the network, such as of tables of relative positions."""
    # timm's name for it, in the file of the architecture.
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of timm's own code
            return state if convert is None else dict(convert(dict(state), net))
    except DIFFERENT:
        return state


def _check_tensors(classifier: Classifier, path: Path, state: State) -> None:
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
