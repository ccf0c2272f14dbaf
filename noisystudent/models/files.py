"""Files of weights from anywhere: read without running code, assigned by name or by order, with any head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm.models
from torch import Tensor, nn

from noisystudent.errors import InputError, first_line
from noisystudent.models.layers import head_prefixes
from noisystudent.run.described import described
from noisystudent.run.rundir import WEIGHT_FILES, weights_file

State = dict[str, Tensor]
"""Tensors by name."""
Build = Callable[[State, int], nn.Module]
"""(state, number of classes) -> the network with this state, loaded by timm; see `load_file`."""

_MLP = ("0.weight", "0.bias", "2.weight", "2.bias")  # of `heads.Mlp`, after the name of the classifier

DIFFERENT = (RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError)
"""Of timm for a state of another network: conversions look for names, and torch compares names and shapes."""


def weights_in(path: Path) -> Path:
    """The weights file for a path: the file itself, or the one in the folder of a model, of a run or of timm.

    Raises:
        InputError: there is none.
    """
    file = weights_file(path)
    if file is not None:
        return file
    models = sorted(str(model.parent) for model in path.glob(f"*/*/{WEIGHT_FILES[0]}"))
    right = "one of its models, " + ", ".join(models) if models else "a file, or the folder of a model"
    raise InputError(f"{path} has no weights; give {right}")


def read_state(path: Path, name: str) -> State:
    """Read the state_dict of a checkpoint; `weights_only`, so that no pickled code runs.

    Raises:
        InputError: the file does not exist, is not a checkpoint, or names another network than `name`.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a .safetensors file or a torch checkpoint")
    _check_architecture(path, name)
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


def _check_architecture(path: Path, name: str) -> None:
    """Raise if the file names another architecture.

    Shapes are not enough: two models can have the same shapes and compute different functions.
    """
    stored_name = str(described(path).get("architecture", name))
    if stored_name.split(".")[0] != name.split(".")[0]:  # without the tag of published weights
        raise InputError(f"{path} contains weights of {stored_name}; the model is {name}")


def with_sorted_metadata(data: bytes) -> bytes:
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


def load_file(net: nn.Module, path: Path, build: Build, *, name: str, remap: str) -> bool:
    """Load a file into a new network. The head stays new if the file has another number of classes, or none.

    Args:
        net: network with its initial weights; changed in place.
        path: .safetensors file or torch checkpoint.
        build: builds the same network for the classes of the file, and loads the file into it as timm does:
            with the conversions of the architecture, and strictly. Raises if the tensors differ.
        name: name of the network, for messages.
        remap: "names", or "order": the tensors of the file are assigned in their order.

    Returns:
        True if the head is that of the file.

    Raises:
        InputError: the file cannot be read, or belongs to another network.
    """
    state, own, head = read_state(path, name), net.state_dict(), head_prefixes(net)
    if remap == "order":
        state = _in_order(own, state, path, name, head)
    else:
        state = _by_name(net, state, path, name, build)
    of_head = [key for key in own if key.startswith(head)]
    new = of_head if any(_shape(state, key) != own[key].shape for key in of_head) else []
    net.load_state_dict({key: own[key] if key in new else state[key] for key in own})
    return not new


def _by_name(net: Any, state: State, path: Path, name: str, build: Build) -> State:
    """Weights of the network that timm loads from the state; timm knows no `Mlp`, whose weights stay."""
    head = head_prefixes(net)
    named = [state[f"{prefix}weight"] for prefix in head if f"{prefix}weight" in state]
    mlp = {key: state[key] for prefix in head for part in _MLP if (key := f"{prefix}{part}") in state}
    # Without the name of the head in it, a file is of a network without one, or of another form with one.
    counts = [len(named[0])] if named else [0, net.pretrained_cfg["num_classes"]]
    for count in counts:
        try:
            loaded = build({key: value for key, value in state.items() if key not in mlp}, count)
            return dict(loaded.state_dict()) | mlp
        except DIFFERENT:  # a message of timm has many lines
            continue
    raise InputError(f"{path} {_difference(net, state)}, so it is not of {name}; {_advice(net, state)}")


def _difference(net: nn.Module, state: State) -> str:
    """First difference between the tensors of a network and of a file, heads aside."""
    own, head = net.state_dict(), head_prefixes(net)
    for key, value in own.items():
        if key not in state and not key.startswith(head):
            return f"lacks {key!r}"
        if not key.startswith(head) and state[key].shape != value.shape:
            return f"has {key!r} of shape {tuple(state[key].shape)} in place of {tuple(value.shape)}"
    more = next((key for key in state if key not in own), "")
    return f"has {more!r}" if more else "has another head"


def _advice(net: nn.Module, state: State) -> str:
    if _misfit(net.state_dict(), state, head_prefixes(net)) is None:
        return (
            "its tensors fit in their order: set model.remap to order if you know that it is this network,"
            " because others fit, too"
        )
    return "give weights of this network"


def _in_order(own: State, state: State, path: Path, name: str, head: tuple[str, ...]) -> State:
    """The state under the names of the network."""
    misfit = _misfit(own, state, head)
    if misfit is not None:
        names = path.suffix == ".safetensors"
        by = "; a .safetensors file is in order of names, so give a torch checkpoint" if names else ""
        raise InputError(f"model.remap is order, but {path} does not fit {name}: {misfit}{by}")
    return dict(zip(own, state.values(), strict=True))


def _misfit(own: State, state: State, head: tuple[str, ...]) -> str | None:
    """Why tensors do not fit in their order; None if they do. Heads may have different numbers of classes."""
    if len(own) != len(state):
        return f"it has {len(state)} tensors and not {len(own)}"
    for key, given in zip(own, state, strict=True):
        needed, shape = own[key].shape, state[given].shape
        if needed != shape and not (key.startswith(head) and needed[1:] == shape[1:]):
            return f"{given!r} has the shape {tuple(shape)}, and {key!r} {tuple(needed)}"
    return None


def _shape(state: State, key: str) -> object:
    return state[key].shape if key in state else None
