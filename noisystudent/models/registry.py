"""From a model's name to a classifier with reproducible first weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from noisystudent.config import ModelConfig
from noisystudent.errors import InputError, first_line
from noisystudent.models import scaling, small
from noisystudent.models.classifier import Classifier, asked, load_trunk, load_weights, save_weights
from noisystudent.models.noise import no_stochastic_depth
from noisystudent.models.pretrained import Unavailable, pretrained_source
from noisystudent.runtime import torch_seed

__all__ = ["Classifier", "asked", "build_model", "load_trunk", "load_weights", "save_weights"]

small.register()
scaling.register()

_UNEXPECTED = re.compile(r"unexpected keyword argument(?:\(s\))?:? \[?'(\w+)'")

_ELSEWHERE = {
    "num_classes": "the classes of the labels decide it",
    "in_chans": "images are RGB",
    "img_size": "set model.resolution",
    "pretrained": "set model.pretrained",
    "checkpoint_path": "set model.pretrained, or a student's init to teacher",
    "features_only": "a classifier is needed",
}


def build_model(
    config: ModelConfig,
    num_classes: int,
    resolution: int,
    *,
    seed: int = 0,
    pretrained: bool | None = None,
    notify: Callable[[str], None] | None = None,
) -> Classifier:
    """Build a classifier whose first weights are a pure function of (config, num_classes, resolution, seed).

    Args:
        config: name, noise and options. `config.resolution` is the caller's to resolve into `resolution`.
        num_classes: K.
        resolution: side in pixels; models of a fixed input size are built for it.
        seed: of the run; the global generators are left as they were.
        pretrained: overrides `config.pretrained`: False where weights are loaded afterwards.
        notify: told in one line where `config.pretrained_fallback` had to be used.

    Raises:
        InputError: unknown name, options or noise the model has not, published weights that cannot be had.
    """
    _check_name(config.name)
    _check_options(config)
    wanted = config.pretrained if pretrained is None else pretrained
    try:
        net = _create(config, num_classes, resolution, seed, pretrained=wanted)
    except Unavailable as error:
        reason = f"the published weights of {config.name} cannot be had: {error}"
        if not config.pretrained_fallback:
            advice = "set model.pretrained_fallback to true to start from scratch"
            raise InputError(f"model.pretrained is true, but {reason}; {advice}") from error
        if notify is not None:
            notify(f"{reason}; starting from scratch")
        net = _create(config, num_classes, resolution, seed, pretrained=False)
    return Classifier(net, config, num_classes, resolution)


def _check_name(name: str) -> None:
    tagged = "." in name  # architecture.weights
    if name in timm.list_pretrained() if tagged else timm.is_model(name):
        return
    close = difflib.get_close_matches(name, timm.list_pretrained() if tagged else timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() has the names"
    raise InputError(f"model.name is {name!r}, which neither timm nor this package knows; {hint}")


def _check_options(config: ModelConfig) -> None:
    for key in config.options:
        if key in _ELSEWHERE:
            raise InputError(f"model.options has {key!r}; {_ELSEWHERE[key]}")
        if "drop" in key:  # cannot be switched per image, and draws from the global generator
            raise InputError(f"model.options has {key!r}; set model.dropout and model.stochastic_depth")


def _create(
    config: ModelConfig, num_classes: int, resolution: int, seed: int, *, pretrained: bool
) -> nn.Module:
    arguments = _arguments(config, num_classes, resolution)
    if pretrained:
        arguments |= pretrained_source(config.name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(seed, "init"))  # the CPU's alone
        net = _call_timm(config, resolution, arguments)
    for module in net.modules():
        if isinstance(module, nn.Dropout):  # a few architectures bring a rate of their own
            module.p = 0.0
    return net


def _arguments(config: ModelConfig, num_classes: int, resolution: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {"num_classes": num_classes, "drop_rate": 0.0, **config.options}
    if config.stochastic_depth > 0:  # some models do not know the argument
        arguments["drop_path_rate"] = config.stochastic_depth
    cfg = timm.get_pretrained_cfg(config.name)
    if cfg is not None and cfg.fixed_input_size:
        arguments["img_size"] = resolution
    return arguments


def _call_timm(config: ModelConfig, resolution: int, arguments: dict[str, Any]) -> nn.Module:
    try:
        net: nn.Module = timm.create_model(config.name, **arguments)
    except OSError as error:
        raise Unavailable(first_line(error)) from error
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _refusal(config, resolution, error) from error
    return net


def _refusal(config: ModelConfig, resolution: int, error: Exception) -> InputError:
    unexpected = _UNEXPECTED.search(str(error))
    if unexpected is None:
        return InputError(
            f"model.name is {config.name}, which cannot be built at {resolution} pixels with model.options "
            f"{config.options}: {first_line(error)}"
        )
    if unexpected[1] == "drop_path_rate":
        return no_stochastic_depth(config.name)
    return InputError(f"model.options has {unexpected[1]!r}, unknown to {config.name}; remove it")
