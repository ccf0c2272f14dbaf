"""timm optimisers with the paper's weight-decay rule, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from typing import Any, Protocol, cast

import torch
import xxhash
from timm.optim import create_optimizer_v2
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from noisystudent.config import TrainConfig
from noisystudent.config.rates import LEARNING_RATES, SCRATCH

# Fraction of all steps. Without this limit, the default warm-up of 5 epochs would be most of a short run.
LONGEST_WARMUP = 0.2
_SHOWN = 6  # factors of layers in one line of text
STAIR = 0.97  # factor of each stair; Xie et al. 2020, §3.1


def _is_norm(module: nn.Module) -> bool:
    """True for normalisation layers: "norm" is in the name of the class or of a base class.

    The paper's code decides by name too. This includes BatchNormAct2d, LayerNorm2d, RmsNorm, ….
    """
    return any("norm" in base.__name__.lower() for base in type(module).__mro__)


class Layered(Protocol):
    """What a model tells of its parameters, by their names; `models.classifier.Classifier` does."""

    def layers(self, field: str) -> list[list[str]]:
        """Parameters of the stem, of each block and of the head."""

    def head(self) -> list[str]:
        """Parameters of the classification layer."""

    def no_weight_decay(self) -> set[str]:
        """Parameters that have no weight decay."""


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Divide the trainable parameters into groups of equal weight decay and learning rate.

    Parameters of normalisation layers and those of `no_weight_decay` have no weight decay. Biases of
    convolutions and linear layers have it (paper.md §1.1; published main.py:552-555).

    Args:
        model: a `Layered` model if the rates of `config` differ between layers.
        config: weight decay, and the differences between layers.

    Returns:
        Groups for a torch optimiser, those with weight decay first, in each from the stem to the head.
        `lr_scale` is the factor of the learning rate, as in timm.
    """
    norms = [module for module in model.modules() if _is_norm(module)]
    not_decayed = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    named: set[str] = getattr(model, "no_weight_decay", set)()
    scales = lr_scales(model, config)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = id(parameter) in not_decayed or name in named
            groups.setdefault((spared, scales.get(name, 1.0)), []).append(parameter)
    return [
        {"params": groups[key], "weight_decay": 0.0 if key[0] else config.weight_decay, "lr_scale": key[1]}
        for key in sorted(groups)
    ]


def lr_scales(model: nn.Module, config: TrainConfig) -> dict[str, float]:
    """Factor of the learning rate by name of the parameter; those that are not named have 1.

    The last layer has `layer_decay` to the power of 0, the one before it to the power of 1, as in BEiT
    (arXiv 2106.08254) and in timm. The classification layer has `head_lr_scale` besides.
    """
    scales: dict[str, float] = {}
    layered = cast(Layered, model)
    if config.layer_decay != 1:
        for depth, names in enumerate(reversed(layered.layers("train.layer_decay"))):
            scales |= dict.fromkeys(names, config.layer_decay**depth)
    if config.head_lr_scale != 1:
        scales |= {name: config.head_lr_scale * scales.get(name, 1.0) for name in layered.head()}
    return scales


def describe_rates(model: nn.Module, config: TrainConfig) -> str | None:
    """One line of text with the factors of the learning rate from stem to head; None if there are none."""
    scales = lr_scales(model, config)
    if not scales:
        return None
    layers = cast(Layered, model).layers("train.layer_decay") if config.layer_decay != 1 else []
    factors = [f"{scales[layer[0]]:.3g}" for layer in layers[:-1]] or ["1"]
    shown = factors if len(factors) <= _SHOWN else [*factors[:2], "…", *factors[-2:]]
    head = max(scales[name] for name in cast(Layered, model).head())
    return (
        f"factors of the learning rate from the stem on: {', '.join(shown)}; classification layer {head:.3g}"
    )


def frozen_digest(model: nn.Module) -> int:
    """Digest of 63 bits of the parameters that are not trained; 0 if there are none."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    if not frozen:
        return 0
    digest = xxhash.xxh3_64()
    for parameter in frozen:
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.intdigest() >> 1  # int64 has a sign


def _timm_arguments(config: TrainConfig, example: nn.Parameter) -> dict[str, Any]:
    """Arguments of timm's create_optimizer_v2, without parameters, of which one is given, and rate."""
    match config.optimizer:
        # As in TensorFlow: epsilon is inside the square root, and the average of squares starts at 1.
        case "rmsprop_tf":
            return {
                "opt": "rmsproptf",
                "alpha": 0.9,
                "eps": 1e-3,
                "momentum": config.momentum,
                "foreach": True,  # one kernel for many parameters
            }
        # timm's `sgd` uses Nesterov momentum, which must not be 0. timm's `momentum` is SGD without Nesterov.
        case "sgd":
            name = "sgd" if config.momentum else "momentum"
            # PyTorch cannot divide its fused SGD among processes.
            return {"opt": name, "momentum": config.momentum, "fused": not isinstance(example, DTensor)}
        case "adamw":
            # Capturable: the step count stays on the GPU, as a CUDA graph needs it.
            return {"opt": "adamw", "fused": True, "capturable": example.is_cuda}


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Build the optimiser of `config` for the trainable parameters of `model`.

    The `lr` of a group is a tensor () float32 on the device of the model, shared by groups of one `lr_scale`.
    `set_lr` fills it before each step. It is a tensor, because a captured CUDA graph would keep the first
    value of a number.
    """
    groups = parameter_groups(model, config)
    example = groups[0]["params"][0]
    arguments = _timm_arguments(config, example)
    optimizer: Optimizer = create_optimizer_v2(groups, lr=peak_lr(config), **arguments)
    rates = {group["lr_scale"]: torch.empty((), device=example.device) for group in optimizer.param_groups}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["lr_scale"]]
    set_lr(optimizer, peak_lr(config))
    return optimizer


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of each group: `lr` times its factor."""
    for group in optimizer.param_groups:
        # A rate beyond float32 is infinite, so the check of the weights stops the training.
        rate = torch.tensor(lr * group["lr_scale"], dtype=torch.float64).float().item()
        group["lr"].fill_(rate)


def peak_lr(config: TrainConfig) -> float:
    """Learning rate at the end of warm-up; it is proportional to the number of labelled images per step."""
    lr = LEARNING_RATES[SCRATCH][config.optimizer] if config.lr is None else config.lr
    return lr * config.batch_size / 256  # `lr` is given for 256 labelled images


def lr_at(step: int, config: TrainConfig, steps_per_epoch: float, total_steps: int) -> float:
    """Learning rate of a step (Xie et al. 2020, §3.1; published utils.py:39-74).

    Warm-up is linear from 0 and lasts `warmup_epochs`, but never more than a fifth of the run. After it,
    `cosine` decreases to 0 at `total_steps`. `staircase` multiplies the peak by 0.97 for each complete
    period of `decay_epochs` since step 0. `constant` keeps the peak.

    Args:
        step: 0 … total_steps-1, number of optimiser steps before this one.
        config: schedule, peak and durations.
        steps_per_epoch: labelled images / labelled images per step; may be a fraction.
        total_steps: number of steps of the run.
    """
    peak = peak_lr(config)
    warmup = min(config.warmup_epochs * steps_per_epoch, LONGEST_WARMUP * total_steps)
    if step < warmup:  # never with a warm-up of 0, so there is no division by 0
        return peak * step / warmup
    match config.schedule:
        case "cosine":
            return 0.5 * peak * (1.0 + math.cos(math.pi * (step - warmup) / (total_steps - warmup)))
        case "staircase":
            return peak * STAIR ** math.floor(step / (config.decay_epochs * steps_per_epoch))
        case "constant":
            return peak
