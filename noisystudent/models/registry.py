"""Builds a classifier with reproducible initial weights from the name of a model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from noisystudent.config import ModelConfig
from noisystudent.console import Progress
from noisystudent.errors import InputError, did_you_mean, first_line
from noisystudent.models import scaling, small
from noisystudent.models.classifier import Classifier
from noisystudent.models.files import load_file
from noisystudent.models.heads import use_mlp
from noisystudent.models.noise import no_stochastic_depth
from noisystudent.models.pretrained import (
    HUB,
    Source,
    Unavailable,
    find_source,
    hub_file,
    pretrained_source,
    published_tags,
)
from noisystudent.run.described import described
from noisystudent.runtime import initial_weights

# At import, so that timm has these networks before any name is looked up.
small.register()
scaling.register()

# The messages of Python and of timm for an argument that a model does not have.
_UNEXPECTED = re.compile(r"unexpected keyword argument(?:\(s\))?:? \[?'(\w+)'")

# Arguments of timm.create_model that are not allowed in model.options, and what to do instead.
_REFUSED_OPTIONS = {
    "num_classes": "remove it, the number of classes comes from the labels",
    "in_chans": "remove it, images are RGB",
    "img_size": "set model.resolution",
    "pretrained": "set model.pretrained",
    "checkpoint_path": "set model.pretrained, or a student's init to teacher",
    "features_only": "remove it, a classifier is needed",
}
# All arguments of timm itself, among them those that name files or repositories of the hub. Arguments of the
# network are allowed.
_OF_TIMM = frozenset(
    name
    for function in (timm.create_model, timm.models.build_model_with_cfg)
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
)


def build_model(
    config: ModelConfig,
    num_classes: int,
    resolution: int,
    *,
    seed: int = 0,
    pretrained: bool | str | None = None,
    progress: Progress | None = None,
) -> Classifier:
    """Build a classifier whose initial weights are a pure function of the config, sizes and seed.

    Args:
        config: name, noise and options. `config.resolution` is not read: the caller turns it into
            `resolution`.
        num_classes: K.
        resolution: side of the images in pixels. Models with a fixed input size are built for this size.
        seed: seed of the run. The global generators do not change.
        pretrained: replaces `config.pretrained` if given. Pass False if weights are loaded afterwards.
        progress: prints a line if weights are downloaded, if their classification layer is not used, or if
            `config.pretrained_fallback` is. None: a line on standard error for a download.

    Raises:
        InputError: the name is unknown, the model does not have the options or the noise, or the published
            weights are not available.
        Stopped: a signal was received during the download.
    """
    _check_name(config.name)
    _check_options(config)
    source = find_source(config.name, config.pretrained if pretrained is None else pretrained)
    network = _Network(config, num_classes, resolution, seed)
    fell_back = False
    try:
        net = network.new() if source is None else _from_source(network, source, progress)
    except Unavailable as error:
        reason = f"the published weights of {config.name} are not available: {error}"
        if not config.pretrained_fallback:
            advice = "give a file of them, or set model.pretrained_fallback to true to start from random ones"
            given = str(config.pretrained).lower() if config.pretrained is True else config.pretrained
            raise InputError(f"model.pretrained is {given}, but {reason}; {advice}") from error
        if progress is not None:
            progress.say(f"{reason}; starting from random weights")
        net, fell_back = network.new(), True
    model = Classifier(net, config, num_classes, resolution)
    model.fell_back = fell_back
    return model


def _from_source(network: _Network, source: Source, progress: Progress | None) -> nn.Module:
    """The network with the weights of a source; what it has no weights for is initialised as without one."""
    if source.name:
        return network.new(source.name, pretrained_source(source.name, progress))
    file = source.file or hub_file(source.repository, progress)
    description = described(file)
    # Pixels are normalised as in the training of the weights.
    normalization = {key: description[key] for key in ("mean", "std") if key in description}
    net = network.new(arguments={"pretrained_cfg_overlay": normalization} if normalization else {})
    name, remap = network.config.name, network.config.remap
    # A repository may have any weights. A file mostly has published ones, which often agree in mean and std.
    if not normalization and progress is not None and (source.repository or _differently_normalized(name)):
        origin = f"{HUB}{source.repository}" if source.repository else file
        progress.say_once(f"mean and std of {origin} are not known; those of {name} are used")
    same_head = load_file(net, file, network.loaded, name=name, remap=remap)
    if not same_head and progress is not None:
        progress.say(
            f"{file} has no {network.config.head} head of {network.num_classes:,} classes: the head of {name}"
            " starts from random weights"
        )
    return net


def _differently_normalized(name: str) -> bool:
    """Return True if the published weights of the architecture differ in mean and std of the pixels."""
    architecture = name.split(".")[0]
    cfgs = [timm.get_pretrained_cfg(f"{architecture}.{tag}") for tag in published_tags(architecture)]
    return len({(cfg.mean, cfg.std) for cfg in cfgs}) > 1


def _check_name(name: str) -> None:
    tagged = "." in name  # architecture.tag; the tag names published weights
    if name in timm.list_pretrained() if tagged else timm.is_model(name):
        return
    close = did_you_mean(name, timm.list_pretrained() if tagged else timm.list_models())
    hint = close or "; timm.list_models() lists the names"
    raise InputError(f"model.name is {name!r}, which is not a model of timm or of this package{hint}")


def _check_options(config: ModelConfig) -> None:
    """Raise if model.options has an argument that is not of the network, or that this package sets itself."""
    for key in config.options:
        if key in _REFUSED_OPTIONS or key in _OF_TIMM or "pretrained" in key:
            advice = _REFUSED_OPTIONS.get(key, "remove it, only the arguments of the network are allowed")
            raise InputError(f"model.options has {key!r}; {advice}")
        # timm's own noise cannot be switched off for single images, and it draws from the global generator.
        if "drop" in key:
            raise InputError(f"model.options has {key!r}; set model.dropout and model.stochastic_depth")


@dataclass(frozen=True, slots=True)
class _Network:
    """A network that timm builds; the attributes are arguments of `build_model`."""

    config: ModelConfig
    num_classes: int
    resolution: int
    seed: int

    def new(self, name: str | None = None, arguments: Mapping[str, Any] | None = None) -> nn.Module:
        """Build it, under its name or with the tag of other weights, and with more arguments of timm."""
        given = {"model_name": name or self.config.name} | self.arguments() | dict(arguments or {})
        with initial_weights(self.seed):
            net = _call_timm(self.config, self.resolution, given)
            if self.config.head == "mlp":  # after the network, so that its weights do not depend on the head
                use_mlp(net)
        for module in net.modules():
            # A few architectures set their own rate. All dropout comes from `ModelNoise`.
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return net

    def loaded(self, state: dict[str, Tensor], num_classes: int) -> nn.Module:
        """Build it for other classes, with a state that timm converts and loads strictly; see `load_file`."""
        overlay = {"state_dict": state, "num_classes": num_classes, "label_offset": 0, "custom_load": False}
        more = {"num_classes": num_classes, "pretrained": True, "pretrained_cfg_overlay": overlay}
        with torch.random.fork_rng(devices=[]):
            net: nn.Module = timm.create_model(self.config.name, **self.arguments() | more)
        return net

    def arguments(self) -> dict[str, Any]:
        """Arguments of `timm.create_model`; dropout is 0, because `ModelNoise` applies it."""
        config = self.config
        arguments: dict[str, Any] = {"num_classes": self.num_classes, "drop_rate": 0.0, **config.options}
        if config.stochastic_depth > 0:  # some models do not have this argument
            arguments["drop_path_rate"] = config.stochastic_depth
        cfg = timm.get_pretrained_cfg(config.name)
        if cfg is not None and cfg.fixed_input_size:  # such as vision transformers with position embeddings
            arguments["img_size"] = self.resolution
        return arguments


def _call_timm(config: ModelConfig, resolution: int, arguments: dict[str, Any]) -> nn.Module:
    try:
        net: nn.Module = timm.create_model(**arguments)
    except (OSError, SafetensorError, UnpicklingError, EOFError) as error:
        file = arguments.get("pretrained_cfg_overlay", {}).get("file")
        if file is None:
            raise _build_error(config, resolution, error) from error
        raise Unavailable(f"{file} is damaged ({first_line(error)}); delete it") from error
    # timm reports a wrong option by any of these.
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _build_error(config, resolution, error) from error
    return net


def _build_error(config: ModelConfig, resolution: int, error: Exception) -> InputError:
    """One-line error for an exception of timm; names the option if timm did not expect it."""
    unexpected = _UNEXPECTED.search(str(error))
    if unexpected is None:
        return InputError(
            f"model.name is {config.name}, which cannot be built at {resolution} pixels with model.options "
            f"{config.options}: {first_line(error)}"
        )
    if unexpected[1] == "drop_path_rate":
        return no_stochastic_depth(config.name)
    option = unexpected[1]
    return InputError(f"model.options has {option!r}, which is not an option of {config.name}; remove it")
