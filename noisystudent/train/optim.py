"""timm optimisers with the paper's weight-decay rule, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from noisystudent.config import TrainConfig

# Fraction of all steps. Without this limit, the default warm-up of 5 epochs would be most of a short run.
LONGEST_WARMUP = 0.2
STAIR = 0.97  # factor of each stair; Xie et al. 2020, §3.1


def _is_norm(module: nn.Module) -> bool:
    """True for normalisation layers: "norm" is in the name of the class or of a base class.

    The paper's code decides by name too. This includes BatchNormAct2d, LayerNorm2d, RmsNorm, ….
    """
    return any("norm" in base.__name__.lower() for base in type(module).__mro__)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divide the trainable parameters into two groups, with weight decay and without.

    Only parameters of normalisation layers have no weight decay. Biases of convolutions and linear layers
    have it (paper.md §1.1; published main.py:552-555).

    Returns:
        Groups for a torch optimiser, the one with weight decay first. Empty groups are left out.
    """
    norms = [module for module in model.modules() if _is_norm(module)]
    not_decayed = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) not in not_decayed], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in not_decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _timm_arguments(config: TrainConfig, on_gpu: bool) -> dict[str, Any]:
    """Arguments of timm's create_optimizer_v2, without parameters and learning rate."""
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
            return {"opt": name, "momentum": config.momentum, "fused": True}
        case "adamw":
            # Capturable: the step count stays on the GPU, as a CUDA graph needs it.
            return {"opt": "adamw", "fused": True, "capturable": on_gpu}


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Build the optimiser of `config` for the trainable parameters of `model`.

    All groups share one `lr`, a tensor () float32 on the device of the model. Fill it with `lr_at` before
    each step. It is a tensor, because a captured CUDA graph would keep the first value of a number.
    """
    groups = parameter_groups(model, config.weight_decay)
    device = groups[0]["params"][0].device
    arguments = _timm_arguments(config, device.type == "cuda")
    optimizer: Optimizer = create_optimizer_v2(groups, lr=peak_lr(config), **arguments)
    rate = torch.tensor(peak_lr(config), device=device)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return optimizer


def peak_lr(config: TrainConfig) -> float:
    """Learning rate at the end of warm-up; it is proportional to the number of labelled images per step."""
    return config.lr * config.batch_size / 256  # `lr` is given for 256 labelled images


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
