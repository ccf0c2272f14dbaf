"""timm optimisers with the paper's weight-decay rule, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from noisystudent.config import TrainConfig

LONGEST_WARMUP = 0.2  # of a run: the default warm-up of 5 epochs would else be most of a short one
STAIR = 0.97  # Xie et al. 2020, §3.1


def _is_norm(module: nn.Module) -> bool:
    """By name, as the paper's code does, of any base: finds BatchNormAct2d, LayerNorm2d, RmsNorm, …"""
    return any("norm" in base.__name__.lower() for base in type(module).__mro__)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters, decayed ones first; only those of normalisation layers are not decayed.

    Biases of convolutions and linear layers are decayed (paper.md §1.1; published main.py:552-555).
    """
    norms = [module for module in model.modules() if _is_norm(module)]
    spared = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _timm_arguments(config: TrainConfig, on_gpu: bool) -> dict[str, Any]:
    match config.optimizer:
        case "rmsprop_tf":  # epsilon inside the root, squared average from 1, as in TensorFlow
            return {
                "opt": "rmsproptf",
                "alpha": 0.9,
                "eps": 1e-3,
                "momentum": config.momentum,
                "foreach": True,
            }
        case "sgd":  # timm's sgd is Nesterov's, which needs a momentum; its `momentum` is the same without
            name = "sgd" if config.momentum else "momentum"
            return {"opt": name, "momentum": config.momentum, "fused": True}
        case "adamw":
            return {"opt": "adamw", "fused": True, "capturable": on_gpu}


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimiser of `config` over the trainable parameters of `model`.

    The `lr` of its groups is one tensor () float32 on their device, to be filled with `lr_at` before each
    step: a number would be baked into a captured CUDA graph.
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
    """Learning rate at the end of warm-up: linear in the number of labelled images a step."""
    return config.lr * config.batch_size / 256


def lr_at(step: int, config: TrainConfig, steps_per_epoch: float, total_steps: int) -> float:
    """Learning rate of step 0 … total_steps-1 (Xie et al. 2020, §3.1; published utils.py:39-74).

    Warm-up is linear from 0 and lasts `warmup_epochs`, but never more than a fifth of the run. Then cosine
    falls to 0 at `total_steps`; staircase is 0.97 to the power of the whole `decay_epochs` since step 0.

    Args:
        step: optimiser steps done before this one.
        config: schedule, peak and durations.
        steps_per_epoch: labelled images / labelled images a step; may be a fraction.
        total_steps: length of the run.
    """
    peak = peak_lr(config)
    warmup = min(config.warmup_epochs * steps_per_epoch, LONGEST_WARMUP * total_steps)
    if step < warmup:
        return peak * step / warmup
    match config.schedule:
        case "cosine":
            return 0.5 * peak * (1.0 + math.cos(math.pi * (step - warmup) / (total_steps - warmup)))
        case "staircase":
            return peak * STAIR ** math.floor(step / (config.decay_epochs * steps_per_epoch))
        case "constant":
            return peak
